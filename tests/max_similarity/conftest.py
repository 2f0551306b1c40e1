"""The operator has CPU kernels only: processes whose CPU tensors have another backend leave its tests out."""

import cases

collect_ignore_glob = ["test_*.py"] if cases.INTERPRETED or cases.EMULATED else []
