"""Text that a program writes into a document that people write."""


def replace_between(text, begin, end, new):
    """`text` with what stands between its lines `begin` and `end` replaced by `new`. Raises ValueError if
    it does not hold each once, in this order."""
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(f"expected '{begin}' and, after it, '{end}', once each")
    before, _, rest = text.partition(begin)
    after = rest.partition(end)[2]
    return "\n\n".join([before + begin, new.strip("\n"), end + after])
