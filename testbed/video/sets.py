"""The video sibling's question sets: rows as parquet, clips as video files, in the shape `datasets` and lmms-eval read.

    python -m testbed.video.sets --out data     # data/visiondrop-testbed-video/{validation,test,quick}/
    python -m testbed.video.sets --chance       # chance levels of every kind, and the sets' digests

Kinds are equally frequent, answers of a kind as equal as the clips allow, up to five questions share a clip.  Set
`test` is asked once per finished model, `validation` is for choosing, `quick` (other clips of the test split) for a
first look.
"""

from __future__ import annotations

import sys
from operator import attrgetter
from pathlib import Path

from testbed.data.material import Questions, Scenes
from testbed.data.questions import Question
from testbed.data.sets import Family, SetSpec
from testbed.video.files import write_clip
from testbed.video.questions import KINDS, draw_question
from testbed.video.scenes import VERSION, Clip, clip_rng, draw_clip
from testbed.video.tokenizer import IDS

SETS = {
    "validation": SetSpec("validation", 0, 300),
    "test": SetSpec("test", 0, 300),
    "quick": SetSpec("test", 100_000, 100),
}


def clip_row(name: str, split: str, index: int, clip: Clip, question: Question) -> dict:
    """Columns of a question about a clip, beside its number."""
    return {
        "video": f"{name}-{index:06d}",
        "set": name,
        "split": split,
        "scene": index,
        "question": question.text,
        "answer": question.answer,
        "kind": question.kind,
    }


def keep_clip(folder: Path, name: str, index: int, clip: Clip) -> None:
    """Writes the video file that the clip's rows name."""
    (folder / "videos").mkdir(exist_ok=True)
    write_clip(folder / "videos" / f"{name}-{index:06d}.mp4", clip.frames)


FAMILY = Family(
    dataset="visiondrop-testbed-video",
    note="Question sets of VisionDrop's video testbed",
    sets=SETS,
    scenes=Scenes(VERSION, draw_clip, clip_rng, attrgetter("frames")),
    # every clip has one of the fallbacks: a thing that neither changes nor hides its colour, or one that does
    questions=Questions(KINDS, KINDS, draw_question, fallback=("shape", "changes"), ids=IDS),
    per_image=len(KINDS),
    row=clip_row,
    rare_first=False,
    keep=keep_clip,
)
DATASET = FAMILY.dataset
draw_set, write_sets = FAMILY.draw_set, FAMILY.write_sets
digest, chance_levels = FAMILY.digest, FAMILY.chance_levels

if __name__ == "__main__":
    sys.exit(FAMILY.main())
