"""All verbs by name, in the order of ``--help``. A new one is a file, and a line here.

The files import what is heavy inside their actions, so that ``--help`` answers at once.
"""

from engram_eval.verbs.bench import BENCH
from engram_eval.verbs.claims import CLAIMS
from engram_eval.verbs.convert import CONVERT
from engram_eval.verbs.generate import GENERATE
from engram_eval.verbs.list import LIST
from engram_eval.verbs.mirror import MIRROR
from engram_eval.verbs.pack import PACK
from engram_eval.verbs.publish import PUBLISH
from engram_eval.verbs.report import REPORT_VERB
from engram_eval.verbs.status import STATUS
from engram_eval.verbs.study import STUDY_VERBS
from engram_eval.verbs.trace import TRACE
from engram_eval.verbs.verb import Verb
from engram_eval.verbs.verify import VERIFY

VERBS: dict[str, Verb] = {
    **STUDY_VERBS,
    "report": REPORT_VERB,
    "claims": CLAIMS,
    "pack": PACK,
    "publish": PUBLISH,
    "verify": VERIFY,
    "bench": BENCH,
    "list": LIST,
    "mirror": MIRROR,
    "status": STATUS,
    "trace": TRACE,
    "generate": GENERATE,
    "convert": CONVERT,
}
