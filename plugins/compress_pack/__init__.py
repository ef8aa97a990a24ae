"""One self-contained file for storage and transfer: the artifact, entropy-coded.

`compress_pack.exporter` is the plugin. `compress_pack.decoding` needs numpy and constriction alone.
"""
