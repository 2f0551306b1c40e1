"""Documents with generated parts."""


def replace_between(text: str, content: str, begin: str, end: str) -> str:
    """`text` with what stands between the markers replaced.

    Raises:
        ValueError: the markers do not stand there exactly once, in order.
    """
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(f"expected {begin} and {end}, once each and in this order")
    before, rest = text.split(begin)
    return f"{before}{begin}\n{content}\n{end}{rest.split(end)[1]}"
