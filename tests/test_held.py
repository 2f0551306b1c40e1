"""What tests of workspaces count with."""

import torch
from held import Held


def test_held_counts_what_there_is_at_once():
    given = torch.zeros(1000)
    with Held(given) as held:
        first = torch.empty(100)
        # Neither what was given nor a view takes more.
        views = given.view(10, 100), first[:50]
        assert (held.now, held.peak) == (400, 400)
        del first
        assert held.now == 400
        del views
        assert (held.now, held.peak) == (0, 400)
        some = [torch.empty(20), torch.empty(60, dtype=torch.float64)]
        assert (held.now, held.peak) == (560, 560)
        some.clear()
        assert (held.now, held.peak) == (0, 560)
