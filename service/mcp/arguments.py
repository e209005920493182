"""The arguments of the tools, with what an assistant is told about each."""

from typing import Annotated, Any

from pydantic import Field

from bergson_core.schemas.query import Direction, Join, Order, VerifySpec

IndexName = Annotated[str, Field(description="Name of the index, one of those that list_indexes returns.")]
Prompt = Annotated[
    str | None,
    Field(description="Text before the completion; leave it out if you give messages or a behaviour."),
]
Completion = Annotated[
    str | None,
    Field(
        description="What the model said after the prompt, usually with a space at its beginning. Without it, "
        "the model generates a completion and explains that."
    ),
]
Messages = Annotated[
    list[dict[str, Any]] | None,
    Field(
        description="A chat instead of prompt and completion: messages with role and content, the last of "
        "which is the assistant's and is explained."
    ),
]
InsteadOf = Annotated[
    str | None,
    Field(description="Another completion: why did the model say the completion rather than this?"),
]
Behaviour = Annotated[
    str | None,
    Field(description="A behaviour of list_behaviours to explain, instead of prompt and completion."),
]
InsteadOfBehaviour = Annotated[
    str | None,
    Field(description="Another behaviour, whose scores are subtracted from those of `behaviour`."),
]
Between = Annotated[
    tuple[int, int] | None,
    Field(
        description="Checkpoints [earlier, later] of an index over several, from 0, -1 is the last: why does "
        "the later model say the completion, and the earlier one not yet?"
    ),
]
Filter = Annotated[
    dict[str, Any] | None,
    Field(
        description="Conditions on metadata columns that every document meets: a value, a list of values, or "
        'comparisons, such as {"source": ["wiki"], "year": {"gte": 1990}}.'
    ),
]
Profile = Annotated[
    str, Field(description="Weighting of the gradients, one of the profiles that describe_index returns.")
]
JoinMode = Annotated[
    Join,
    Field(description="`space` puts a space between prompt and completion if neither has one."),
]
DirectionMode = Annotated[
    Direction,
    Field(description="Documents that made the completion more likely, less likely, or both."),
]
TopK = Annotated[int, Field(ge=1, le=50, description="Number of documents in each direction.")]
OrderMode = Annotated[
    Order,
    Field(description="Order by influence, by matching words (BM25), or by both ranks together."),
]
CompareWords = Annotated[
    bool,
    Field(description="Tell of each document whether it states the completion, and its rank by words."),
]
GroupBy = Annotated[
    str | None,
    Field(
        description="Return documents that belong together once, with the sum of their scores: `near_duplicates`, "
        "`document` for the chunks of long documents, or a metadata column."
    ),
]
Rescore = Annotated[
    int | None,
    Field(
        ge=1,
        le=1000,
        description="Score so many candidates again by their whole gradients, which is exact and slower.",
    ),
]
Verify = Annotated[
    VerifySpec | None,
    Field(
        description="Test the best documents: unlearn each in memory, beside random documents, and report how much "
        "less likely the completion becomes. The model and the index stay as they are. It takes seconds to minutes."
    ),
]
TimeoutS = Annotated[
    float | None,
    Field(gt=0, description="Seconds to wait for the answer. The default and the maximum are the service's."),
]
Characters = Annotated[
    int, Field(ge=0, le=20_000, description="Most characters to quote of each document's text.")
]
Column = Annotated[
    str, Field(description="Metadata column to sum by, one of those that describe_index returns.")
]
TopGroups = Annotated[
    int, Field(ge=1, le=100, description="Number of groups to return, those with the largest sums.")
]
Threshold = Annotated[
    float | None,
    Field(
        ge=0,
        le=100,
        description="Scores within so many times their noise count as 0. With 0, sums over many documents are mostly "
        "noise.",
    ),
]
