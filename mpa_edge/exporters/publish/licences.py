"""The licence of a model, and whether it restricts what may be done with what was made from it."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpa_edge.config.library import parse_yaml
from mpa_edge.errors import MpaError
from mpa_edge.vlm import resolve
from mpa_edge.vlm.openai.reference import is_server, parse

UNKNOWN = "unknown"
MAX_CARD_BYTES = 1_000_000
HUB_TIMEOUT_S = 5.0
FRONT_MATTER = re.compile(r"\A---\s*\n(.*?)\n---\s*(\n|\Z)", re.DOTALL)
# where huggingface_hub keeps what it downloaded
HUB_FOLDER = re.compile(r"/models--([^/]+?)--([^/]+)/snapshots/[^/]+/?$")
# first words of a licence's text -> its name on the hub
TEXTS = {"apache license": "apache-2.0", "mit license": "mit", "bsd 3-clause": "bsd-3-clause"}
# names on the hub of licences that restrict use; the first pattern that is found gives the sentence
RESTRICTED = {
    r"-nc\b|-nc-|non-?commercial|amlr|research": "no commercial use, or research only",
    r"-nd\b|-nd-|no-?deriv": "no changed versions may be shared, and a quantized model is one",
    r"^llama|meta-llama": "Meta's terms apply: naming, acceptable use, a limit on users",
    r"^gemma": "Google's terms and its list of prohibited uses apply",
    r"rail|bloom|deepseek|falcon|tii-|creativeml": "a list of prohibited uses applies",
    r"gpl|-sa\b|-sa-": "what is made from it must be shared under the same licence",
    r"^other$|^unknown$|^$": "its terms are its own: read them before you share or sell anything made from it",
}


@dataclass(frozen=True)
class Licence:
    """Licence of one model."""

    model: str
    """Hub id, or the name of a folder: never a path of this machine."""
    id: str
    """As the hub writes it; `unknown` where no card and no licence text was found."""
    name: str = ""
    """What the model's card calls it where the id is `other`."""
    link: str = ""
    """Where the terms are, as the model's card says."""

    @property
    def title(self) -> str:
        """Name for people."""
        return self.name or self.id

    @property
    def restriction(self) -> str | None:
        """What the licence restricts; None for the permissive ones.

        >>> Licence("x", "cc-by-nc-4.0").restriction, Licence("x", "apache-2.0").restriction
        ('no commercial use, or research only', None)
        """
        words = f"{self.id} {self.name}".lower().split()
        found = (why for pattern, why in RESTRICTED.items() if any(re.search(pattern, word) for word in words))
        return next(found, None)


def licence_of(reference: str) -> Licence:
    """Licence of a recipe's teacher or student: of a folder, a built-in model, or a hub id.

    A hub id's card is looked for among the downloaded files, then on the hub; `unknown` where it is not found. Of a
    model behind a server only the model's name is used, as a hub id, never the server's address.
    """
    if is_server(reference):
        reference = parse(reference).model
        if reference.count("/") != 1 or Path(reference).is_absolute():
            return Licence(Path(reference).name, UNKNOWN)
    try:
        found = Path(resolve(reference))
    except MpaError:
        return Licence(Path(reference).name, UNKNOWN)
    downloaded = HUB_FOLDER.search(found.as_posix())
    if not found.is_dir():
        return _from_card(reference, _card_on_hub(reference)) or Licence(reference, UNKNOWN)
    name = found.resolve().name if Path(reference).expanduser().exists() else reference
    text = _read(found / "README.md")
    if downloaded:
        name = f"{downloaded[1]}/{downloaded[2]}"
        text = text or _card_on_hub(name)
    if from_card := _from_card(name, text):
        return from_card
    texts = [_read(path)[:2000].lower() for path in sorted(found.glob("LICEN[SC]E*")) if path.is_file()]
    known = next((licence for text in texts for words, licence in TEXTS.items() if words in text), "other")
    return Licence(name, known if texts else UNKNOWN)


def front_matter(card: str) -> dict[str, Any]:
    """The YAML head of a model card; empty where it has none, or it is not valid.

    >>> front_matter("---\\nlicense: mit\\n---\\n# x")
    {'license': 'mit'}
    """
    found = FRONT_MATTER.match(card)
    try:
        head = parse_yaml(found[1], "model card") if found else {}
    except MpaError:
        return {}
    return head if isinstance(head, dict) else {}


def _from_card(name: str, card: str) -> Licence | None:
    head = front_matter(card)
    given = head.get("license")
    known = given[0] if isinstance(given, list) and given else given
    if not isinstance(known, str) or not known:
        return None

    def plain(value: Any) -> str:
        """Somebody else's text for a line of our card: one line, no code marks, not long."""
        return " ".join(str(value or "").replace("`", "").split())[:200]

    return Licence(name, plain(known.lower()), plain(head.get("license_name")), plain(head.get("license_link")))


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(MAX_CARD_BYTES).decode("utf-8", errors="replace")
    except OSError:
        return ""


def _card_on_hub(hub_id: str) -> str:
    """README.md of a hub model; empty where it cannot be fetched: an export does not fail for a licence line."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        cached = try_to_load_from_cache(hub_id, "README.md")
        if not isinstance(cached, str):
            cached = hf_hub_download(hub_id, "README.md", etag_timeout=HUB_TIMEOUT_S)
        return _read(Path(cached))
    except Exception:  # whatever the reason, the licence is then unknown
        return ""
