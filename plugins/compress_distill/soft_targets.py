"""Soft targets: a student learns the probabilities that a teacher gives to every class.

    L = (1 - w) task + w T^2 KL(softmax(t / T) || softmax(s / T))

s and t are the logits of student and teacher, T the temperature, w the weight. A high temperature shows how the
teacher ranks the wrong classes. Its gradient on s_i is (softmax(s / T) - softmax(t / T))_i / T, which for large T
tends to (s_i - t_i) / (K T^2) for centred logits of K classes: hence the factor T^2, which keeps the two terms in
proportion when T changes.

Source: Hinton, Vinyals & Dean 2015, Distilling the Knowledge in a Neural Network, sec. 2 (with the cross-entropy, whose
gradient is the same as that of KL) and 2.1 (the limit). Ranges: T > 0, w in [0, 1]. Cost: one forward of the
teacher per update.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def soft_target_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(teacher || student), the mean over all places.

    Args:
        student: logits `(..., classes)`.
        teacher: logits of the same shape.
        temperature: T > 0.
    """
    classes = student.shape[-1]
    log_student = F.log_softmax(student.float().reshape(-1, classes) / temperature, dim=-1)
    log_teacher = F.log_softmax(teacher.float().reshape(-1, classes) / temperature, dim=-1)
    return temperature**2 * F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
