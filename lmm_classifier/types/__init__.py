"""What flows through the pipeline: a sample that grows as it passes the steps.

Axes used in every shape comment of this package:

    n  samples (images)
    r  regions of one image; row 0 is always the whole image
    d  embedding dimensions
    k  neighbours kept per region
    c  labels

Every class is frozen, and arrays are made read-only on entry: a step cannot change what another step
made, only return `dataclasses.replace(sample, field=...)`. Similarities and scores are always "higher is
more like".
"""

from lmm_classifier.types.arrays import BoolArray as BoolArray
from lmm_classifier.types.arrays import Float64Array as Float64Array
from lmm_classifier.types.arrays import FloatArray as FloatArray
from lmm_classifier.types.arrays import IntArray as IntArray
from lmm_classifier.types.arrays import read_only as read_only
from lmm_classifier.types.arrays import required as required
from lmm_classifier.types.contract import EncoderContract as EncoderContract
from lmm_classifier.types.decisions import UNKNOWN as UNKNOWN
from lmm_classifier.types.decisions import Choice as Choice
from lmm_classifier.types.decisions import Route as Route
from lmm_classifier.types.decisions import Status as Status
from lmm_classifier.types.decisions import Verdict as Verdict
from lmm_classifier.types.evidence import Neighbours as Neighbours
from lmm_classifier.types.evidence import Scores as Scores
from lmm_classifier.types.labels import LabelScore as LabelScore
from lmm_classifier.types.labels import Membership as Membership
from lmm_classifier.types.labels import MembershipCode as MembershipCode
from lmm_classifier.types.regions import Box as Box
from lmm_classifier.types.regions import Region as Region
from lmm_classifier.types.regions import Skip as Skip
from lmm_classifier.types.regions import Target as Target
from lmm_classifier.types.sample import Sample as Sample
