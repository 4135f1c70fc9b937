"""Solutions of lesson 8."""

from checks import guidance as exercise


def guide(without_text, with_text, scale):
    return without_text + scale * (with_text - without_text)


def leave_out(captions, share, rng):
    return ["" if rng.random() < share else caption for caption in captions]


def guide_rescaled(without_text, with_text, scale):
    guided = guide(without_text, with_text, scale)
    return guided * with_text.std() / guided.std()


assert exercise.check_guide(guide)
assert exercise.check_leave_out(leave_out)
assert exercise.check_guide_rescaled(guide_rescaled)
# A wrong answer is told so.
assert not exercise.check_guide(lambda u, c, scale: c + scale * (c - u))
assert not exercise.check_leave_out(lambda captions, share, rng: [c for c in captions if rng.random() > share])
assert not exercise.check_guide_rescaled(lambda u, c, scale: guide(u, c, scale) / guide(u, c, scale).std())
