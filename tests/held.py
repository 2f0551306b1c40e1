"""What a function holds beside its tensors, found without a GPU: tensors are PyTorch's, kernels are left out."""

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Held(TorchDispatchMode):
    """Most bytes that the tensors which PyTorch makes hold at once."""

    def __init__(self, *given):
        super().__init__()
        self.now, self.peak = 0, 0
        self.known = weakref.WeakSet(x.untyped_storage() for x in given if isinstance(x, torch.Tensor))

    def __torch_dispatch__(self, function, types, arguments=(), given=None):
        result = function(*arguments, **(given or {}))
        for x in tree_leaves(result):
            if isinstance(x, torch.Tensor) and x.untyped_storage() not in self.known:
                storage = x.untyped_storage()
                self.known.add(storage)
                weakref.finalize(storage, self.free, storage.nbytes())
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
        return result

    def free(self, size):
        self.now -= size


class Unlaunched:
    """Stands where a kernel stands, or a module of them."""

    def __getitem__(self, grid):
        return lambda *arguments, **options: None

    __getattr__ = __getitem__
