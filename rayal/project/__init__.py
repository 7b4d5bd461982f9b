"""Projects: the ledger, which remembers who holds which item, who said what, what rounds did."""

from rayal.project.ledger import Ledger as Ledger
from rayal.project.records import Appearance as Appearance
from rayal.project.records import Checkpoint as Checkpoint
from rayal.project.records import ColumnsPart as ColumnsPart
from rayal.project.records import Event as Event
from rayal.project.records import LabelEntry as LabelEntry
from rayal.project.records import LabelResult as LabelResult
from rayal.project.records import LabelRow as LabelRow
from rayal.project.records import Lease as Lease
from rayal.project.records import LeaseRow as LeaseRow
from rayal.project.records import Pick as Pick
from rayal.project.records import PoolPart as PoolPart
from rayal.project.records import ProjectRow as ProjectRow
from rayal.project.records import RoundRow as RoundRow
from rayal.project.records import SelectionRow as SelectionRow
from rayal.project.records import Snapshot as Snapshot
from rayal.project.records import StageRow as StageRow
from rayal.project.replay import rebuild as rebuild
from rayal.project.replay import replay as replay
from rayal.project.schema import STAGES as STAGES
