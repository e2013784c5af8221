from bitfront.errors import BitfrontError as BitfrontError
from bitfront.errors import NothingFits as NothingFits
from bitfront.errors import SpecError as SpecError
from bitfront.spec import JobSpec as JobSpec
from service.api.database import Database as Database
from service.api.database import open_database as open
from service.api.found import FoundConfiguration as FoundConfiguration
from service.api.front import Front as Front
from service.api.study import Study as Study

__all__ = [
    "BitfrontError",
    "Database",
    "FoundConfiguration",
    "Front",
    "JobSpec",
    "NothingFits",
    "SpecError",
    "Study",
    "open",
]
__version__: str
