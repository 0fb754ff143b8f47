"""The built-in stories, and the generator that crosses them with personas and hidden intentions."""

from rlver.stories.generate import benchmark_profiles, generate
from rlver.stories.library import HELD_OUT_TOPIC, Split, StorySpec, load_stories

__all__ = ["HELD_OUT_TOPIC", "Split", "StorySpec", "benchmark_profiles", "generate", "load_stories"]
