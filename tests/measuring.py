"""Peaks of what PyTorch allocates as its profiler counts it, so the same on every machine."""

from torch.profiler import ProfilerActivity, profile


def peak_memory(step):
    """The most bytes that a step holds at once beside what there was before, on the CPU."""
    step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    events = profiler.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == '[memory]')
    held = peak = 0
    for _, change in changes:
        held += change
        peak = max(peak, held)
    assert peak > 0
    return peak
