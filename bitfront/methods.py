"""Every method that a job can ask for: where it comes from, and what it brought here.

The figures are those of docs/results.md, which says how each was measured; a test looks for them
there.
"""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Method:
    """A value of a setting.

    Attributes:
        setting: The setting of a job, or what decides where none does.
        value: What the job writes there.
        source: The paper, or the field's name for what is older than papers.
        brought: On the bundled models; empty where it was not measured.
        section: The heading in docs/results.md that has the figures; empty where there are none.
    """

    setting: str
    value: str
    source: str
    brought: str = ""
    section: str = ""


_ROUNDING: Final = "Rounding methods: uniform precisions at equal bytes"
_P4Q: Final = "P4Q"
_CLIPS: Final = "Q-VLM: searches of clips, and visual-encoder optimisation"
_SEARCH: Final = "Search: hypervolume against trials"
_DISTILLED: Final = "Distilled plans"
_RACING: Final = "Racing"
_FORMATS: Final = "Number formats of weights"
_REFINEMENT: Final = "Refinement"
_CACHE: Final = "Codes of a KV cache"
_CORRECTION: Final = "Cells corrected by whole plans"

_CLIP_P4Q: Final = "digit-clip, w2a8: 67.58 % without"

METHODS: Final = (
    Method(
        "space.formats",
        "fp8_e4m3",
        "FP8, arXiv:2209.05433",
        "digit-clip, calibrated, divergence x 1,000: 0.16; int8 0.01",
        _FORMATS,
    ),
    Method(
        "space.formats",
        "fp8_e5m2",
        "FP8, arXiv:2209.05433",
        "digit-clip, calibrated, divergence x 1,000: 0.64; int8 0.01",
        _FORMATS,
    ),
    Method(
        "space.formats",
        "mxfp8_e4m3",
        "OCP Microscaling Formats 1.0",
        "digit-clip, calibrated, divergence x 1,000: 0.18; int8 0.01",
        _FORMATS,
    ),
    Method(
        "space.formats",
        "mxfp8_e5m2",
        "OCP Microscaling Formats 1.0",
        "digit-clip, calibrated, divergence x 1,000: 0.75; int8 0.01",
        _FORMATS,
    ),
    Method(
        "space.formats",
        "mxfp6_e2m3",
        "OCP Microscaling Formats 1.0",
        "digit-clip, calibrated, divergence x 1,000: 0.23; int6-g32 0.13",
        _FORMATS,
    ),
    Method(
        "space.formats",
        "mxfp6_e3m2",
        "OCP Microscaling Formats 1.0",
        "digit-clip, calibrated, divergence x 1,000: 0.76; int6-g32 0.13",
        _FORMATS,
    ),
    Method(
        "space.formats",
        "mxfp4",
        "OCP Microscaling Formats 1.0",
        "digit-clip, calibrated, divergence x 1,000: 3.73; int4 3.12, int4-g32 2.45",
        _FORMATS,
    ),
    Method(
        "space.formats",
        "nvfp4",
        "NVIDIA's FP4, blocks of 16 with scales in E4M3",
        "digit-clip, calibrated, divergence x 1,000: 2.33; int4 3.12, int4-g32 2.45",
        _FORMATS,
    ),
    Method(
        "space.formats",
        "nf4",
        "QLoRA, arXiv:2305.14314",
        "digit-clip, calibrated, divergence x 1,000: 2.32; int4 3.12, int4-g32 2.45",
        _FORMATS,
    ),
    Method(
        "quantizer.rounding",
        "auto",
        "descent where the model allows it, and else nearest",
        "the default",
    ),
    Method(
        "quantizer.rounding",
        "nearest",
        "round to nearest, with a search of scales",
        "w2a8, w3a8, w4a4: digit-clip 66.6, 90.4, 86.7 %, digit-llava 88.5, 96.3, 90.1 %",
        _ROUNDING,
    ),
    Method(
        "quantizer.rounding",
        "gptq",
        "GPTQ, arXiv:2210.17323",
        "w2a8, w3a8, w4a4: digit-clip 89.9, 92.5, 90.4 %, digit-llava 95.7, 97.0, 94.3 %",
        _ROUNDING,
    ),
    Method(
        "quantizer.rounding",
        "descent",
        "QuantEase, arXiv:2309.01885, with a refit of scales",
        "w2a8, w3a8, w4a4: digit-clip 90.7, 92.5, 90.7 %, digit-llava 96.4, 96.8, 94.5 %",
        _ROUNDING,
    ),
    Method(
        "quantizer.target",
        "own",
        "the layer's own output, as in GPTQ",
        "digit-clip, descent: w2a8 84.2 %, w4a4 88.2 % (one seed)",
        _ROUNDING,
    ),
    Method(
        "quantizer.target",
        "output",
        "asymmetric calibration of GPTAQ, arXiv:2504.02692",
        "digit-clip, descent: w2a8 88.2 %, w4a4 87.5 % (one seed)",
        _ROUNDING,
    ),
    Method(
        "quantizer.target",
        "residual",
        "bitfront, on GPTAQ: what the residual stream has lost, too",
        "digit-clip, descent: w2a8 88.6 %, w4a4 87.9 % (one seed)",
        _ROUNDING,
    ),
    Method(
        "quantizer.target",
        "auto",
        "residual with inputs of 8 bits or more, own below",
        "the default",
    ),
    Method(
        "quantizer.ranges",
        "measured",
        "the extremes, or the percentile of a clip",
        "digit-clip, w4a4: 83.8 % with nearest, 83.4 % with descent",
        _ROUNDING,
    ),
    Method(
        "quantizer.ranges",
        "searched",
        "bitfront: the least error of the layer's output",
        "digit-clip, w4a4: 87.7 % with nearest, 88.1 % with descent",
        _ROUNDING,
    ),
    Method(
        "quantizer.ranges",
        "auto",
        "searched below 8 bits, unless rounding is nearest",
        "the default",
    ),
    Method(
        "profile.clip_search",
        "sequential",
        "percentile clips layer by layer",
        "digit-llava, w4a4: 93.3 %, where 91.0 % are without clips",
        _CLIPS,
    ),
    Method(
        "profile.clip_search",
        "joint",
        "Q-VLM: the clips of a block together",
        "digit-llava, w4a4: 92.6 %, where 91.0 % are without clips",
        _CLIPS,
    ),
    Method(
        "profile.vision",
        "{}",
        "Q-VLM: visual-encoder optimisation",
        "digit-llava, w4a4: 91.8 % in place of 91.0; nothing after a search of clips",
        _CLIPS,
    ),
    Method(
        "space.recovery",
        "context_length",
        "prompt of P4Q, as CoOp's, arXiv:2109.01134",
        f"{_CLIP_P4Q}, 73.85 % with it",
        _P4Q,
    ),
    Method(
        "space.recovery",
        "reduction",
        "low-bit adapter of P4Q",
        f"{_CLIP_P4Q}, 80.05 % with it",
        _P4Q,
    ),
    Method(
        "space.recovery",
        "distillation",
        "P4Q: the full model as a teacher",
        "digit-clip, w2a8, prompt and adapter: 80.02 % with it, 77.61 % without",
        _P4Q,
    ),
    Method(
        "space.recovery",
        "distil",
        "EfficientDM, arXiv:2310.03270, QuEST, arXiv:2402.03666, and CalibTIP, arXiv:2006.10518",
        "w4a4: digit-clip 90.83 %, 90.73 without; digit-llava 95.01 %, 94.46 without",
        _DISTILLED,
    ),
    Method(
        "profile.measure",
        "output_kl",
        "divergence of the model's output, as in ZeroQ, arXiv:2001.00281",
        "the default; rank correlation with estimated errors 0.97 over the demo's trials",
        "The demo",
    ),
    Method(
        "profile.measure",
        "gradient",
        "output error times squared gradient: BRECQ, arXiv:2102.05426",
    ),
    Method(
        "profile.measure", "fisher", "Fisher information times squared error: FIT, arXiv:2210.08502"
    ),
    Method(
        "profile.measure",
        "gauss_newton",
        "squared change of the log-likelihood, one backward pass: Martens, arXiv:1412.1193",
        "rank correlation with measured cells on shapes-clip 0.996, on digit-clip 0.991",
        "Scores in place of measured cells",
    ),
    Method("profile.measure", "entropy", "relative output error times the entropy of Q-VLM, Eq 5"),
    Method(
        "profile.measure",
        "loss_delta",
        "divergence beyond that of the all-8-bit model: CalibTIP, arXiv:2006.10518",
    ),
    Method(
        "profile.measure", "lim", "relative error times what a block changes: LIM, arXiv:2406.17415"
    ),
    Method(
        "profile.measure",
        "zd",
        "relative error by the weights' z-scores, without samples: ZD, arXiv:2406.17415",
    ),
    Method(
        "profile.measure",
        "masked",
        "relative error times what a random mask does: OHQ, arXiv:2309.01945",
    ),
    Method(
        "profile.measure",
        "relevance",
        "relative error times the relevance that runs through a layer: LRP-QViT, arXiv:2401.11243",
        "rank correlation with measured cells on shapes-clip 0.895, on digit-clip 0.939",
        "Scores in place of measured cells",
    ),
    Method(
        "search.allocator",
        "program",
        "integer program over cells, as in HAWQ-V3, arXiv:2011.10680",
        "hypervolume 0.72815 with 100 budgets, each a trial",
        _SEARCH,
    ),
    Method(
        "search.allocator",
        "pairwise",
        "quadratic program with pairs of neighbouring blocks: CLADO, arXiv:2307.05657",
    ),
    Method(
        "search.allocator",
        "greedy",
        "greedy steps by the error that a saved unit costs: MPTQ-ViT, arXiv:2401.14895",
    ),
    Method(
        "space.kv_cache",
        "levels: [uniform, kmeans]",
        "KVQuant, arXiv:2401.18079",
        "2 bits before the rotary embedding: digit-llava, divergence 0.1147 uniform, 0.0273 kmeans",
        _CACHE,
    ),
    Method(
        "search.sampler",
        "tpe",
        "Optuna's tree-structured Parzen estimator",
        "the default; hypervolume after the program 0.72574, 0.66024 alone",
        _SEARCH,
    ),
    Method(
        "search.sampler",
        "nsga2",
        "Optuna's NSGA-II",
        "hypervolume 0.65183 without the program",
        _SEARCH,
    ),
    Method(
        "search.sampler",
        "random",
        "uniform draws",
        "hypervolume 0.64828 without the program",
        _SEARCH,
    ),
    Method(
        "search.race",
        "true",
        "successive halving over samples, arXiv:1502.07943, by paired t-tests",
        "passes saved: digit-clip 38.28 %, shapes-clip 40.04 %; the answers stay",
        _RACING,
    ),
    Method(
        "search.refine",
        "true",
        "bitfront: local search by the divergence of whole plans, each swap a trial",
        "divergence at 2.5 and 3 bits: digit-clip -6.49 and -25.63 %, shapes-clip -20.22 and "
        "-9.34 %",
        _REFINEMENT,
    ),
    Method(
        "search.correct_cells",
        "true",
        "Bayesian linear regression of measured plans on their cells",
        "digit-llava, inputs of 4 bits: divergence x 1,000 of 218.6, 222.7, 288.4 became 217.8, "
        "219.6, 314.1",
        _CORRECTION,
    ),
)
"""The methods, by setting."""
