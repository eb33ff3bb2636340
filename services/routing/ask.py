"""What a request asks of routing, read once from its message. Pure."""

from dataclasses import dataclass
from enum import Enum

from bourse.v1.routing_pb2 import PlanRequest
from bourse.v1.routing_pb2 import Sort as SortMessage


class Sort(Enum):
    """Balance draws by price; each of the others gives every endpoint its own place."""

    BALANCE = 0
    PRICE = 1
    THROUGHPUT = 2
    LATENCY = 3


_SORTS = {
    SortMessage.SORT_PRICE: Sort.PRICE,
    SortMessage.SORT_THROUGHPUT: Sort.THROUGHPUT,
    SortMessage.SORT_LATENCY: Sort.LATENCY,
}


@dataclass(frozen=True, slots=True)
class Ask:
    """The inputs of every filter. `max_tokens` 0: absent."""

    models: tuple[str, ...]
    order: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    forbid_fallbacks: bool = False
    sort: Sort = Sort.BALANCE
    across_models: bool = False
    require_parameters: bool = False
    deny_data_collection: bool = False
    zero_data_retention: bool = False
    prompt_tokens: int = 0
    max_tokens: int = 0
    parameters: frozenset[str] = frozenset()
    input_modalities: frozenset[str] = frozenset()


def from_request(request: PlanRequest) -> Ask:
    """Read a request; a model named twice is asked for once. Unsupported sorts balance."""
    wishes = request.preferences
    return Ask(
        models=tuple(dict.fromkeys(request.models)),
        order=tuple(wishes.order),
        only=tuple(wishes.only),
        ignore=tuple(wishes.ignore),
        forbid_fallbacks=wishes.forbid_fallbacks,
        sort=_SORTS.get(wishes.sort, Sort.BALANCE),
        across_models=wishes.sort_across_models,
        require_parameters=wishes.require_parameters,
        deny_data_collection=wishes.deny_data_collection,
        zero_data_retention=wishes.zero_data_retention,
        prompt_tokens=request.prompt_tokens,
        max_tokens=request.max_tokens,
        parameters=frozenset(request.parameters),
        input_modalities=frozenset(request.input_modalities),
    )
