"""The bundled digits: 1,797 images of 8x8 pixels in ten classes.

Source: Alpaydin and Kaynak 1998, Optical Recognition of Handwritten Digits (UCI), its test set, as scikit-learn ships
it. Pixels are counts from 0 to 16 and become [0, 1].
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from compress_core.parts import DataSource

if TYPE_CHECKING:
    from compress_core.data import Splits


class Digits(DataSource):
    """The 1,797 handwritten digits that come with scikit-learn.

    Columns: image (1, 8, 8), float32 in [0, 1]; label, int64 in 0 to 9. Every split holds the classes in their shares.
    """

    name = "digits"

    validation: float = Field(default=0.2, gt=0, lt=1)
    """The share of all examples by which epochs and techniques are chosen."""
    test: float = Field(default=0.25, gt=0, lt=1)
    """The share of all examples on which quality is reported."""

    @model_validator(mode="after")
    def _leaves_something(self) -> Digits:
        if self.validation + self.test >= 1:
            raise ValueError("`validation` and `test` leave nothing to learn from: their sum must be below 1")
        return self

    def splits(self, seed: int) -> Splits:
        """Read the digits and cut them; `seed` decides which example goes where."""
        import torch
        from sklearn.datasets import load_digits

        from compress_core.data import Columns, Splits
        from compress_data.splitting import cut

        bunch = load_digits()
        image = torch.tensor(bunch.images, dtype=torch.float32).unsqueeze(1) / 16
        label = torch.tensor(bunch.target, dtype=torch.int64)
        parts = cut(label, (self.validation, self.test), seed)
        train, validation, test = (Columns({"image": image[part], "label": label[part]}) for part in parts)
        about = {"source": "scikit-learn load_digits", "classes": [str(digit) for digit in range(10)]}
        return Splits(train, validation, test, about)
