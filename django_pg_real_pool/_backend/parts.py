"""The classes that a wrapper class has as its parts, each with a mixin of ours."""

from __future__ import annotations

from functools import cache
from typing import Any

from .checks import ReleaseValidation
from .schema import PinnedSchemaEditor

#: By the attribute of the wrapper class.
_MIXINS: dict[str, Any] = {
    "SchemaEditorClass": PinnedSchemaEditor,
    "validation_class": ReleaseValidation,
}


def replace_parts(wrapper_class: Any) -> None:
    """Give a wrapper class subclasses of its parts, which may be the base's own."""
    for name, mixin in _MIXINS.items():
        part = getattr(wrapper_class, name)
        if part is not None and not issubclass(part, mixin):
            setattr(wrapper_class, name, _mixed(mixin, part))


@cache
def _mixed(mixin: Any, part: Any) -> Any:
    return type(part.__name__, (mixin, part), {"__module__": part.__module__})
