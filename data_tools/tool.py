"""A data tool: one model of its arguments, from which command line, pipeline steps, checks and schema follow."""

from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from pydantic import BeforeValidator, Field

from .spec import Section, SourceSpec, as_list, word_for


class Tool(Section):
    """The arguments of a data tool and what it does with them; the docstrings of the fields are its help.

    A field may be anything that YAML can say. What the tool reads, the first :data:`Source` or :data:`Sources`, comes
    without a name on the command line.
    """

    def run(self, output_dir: Path) -> str | None:
        """Does the work; what a killed call has left in its folder is there when the same call comes again.

        Args:
            output_dir: What everything is written into.

        Returns:
            A line on what came of it, if there is more to say than where it is.

        Raises:
            PosttrainError: The input is wrong or the work failed.
        """
        raise NotImplementedError


def comma_separated(value: Any) -> Any:
    """Splits a text at its commas, as a command line has a list of names; whatever else stays."""
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


Names = Annotated[list[str], BeforeValidator(comma_separated)]


# A path, or a mapping with the keys of a source in `data.train`.
Source = Annotated[SourceSpec, BeforeValidator(word_for("path"), json_schema_input_type=str | SourceSpec)]
Sources = Annotated[
    list[Source],
    BeforeValidator(as_list, json_schema_input_type=str | SourceSpec | list[str | SourceSpec]),
    Field(min_length=1),
]


def source_fields(tool: type[Tool]) -> list[str]:
    """Returns the fields of a tool that name sources: each a :data:`Source` or :data:`Sources`, or such or nothing."""
    return [name for name, field in tool.model_fields.items() if _is_source(field.annotation)]


def _is_source(kind: Any) -> bool:
    return kind is SourceSpec or (get_origin(kind) is not dict and any(map(_is_source, get_args(kind))))


def sources_of(tool: Tool) -> list[SourceSpec]:
    """Returns every source that a tool reads, in the order of the fields that name them."""
    values = [getattr(tool, name) for name in source_fields(type(tool))]
    listed = [one for value in values for one in (value if isinstance(value, list) else [value])]
    return [one for one in listed if isinstance(one, SourceSpec)]
