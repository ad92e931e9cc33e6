"""The workloads `reasoning`, `tenants` and `client-mix`: traffic of many clients at once."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from headway.bench.workloads.clients import Client, mix_clients
from headway.bench.workloads.workload import Curve, Workload, draw_from_quantiles, stream
from headway.simulator.trace import Trace

_SERVEGEN = "ServeGen (arXiv 2505.09999; alibaba/ServeGen, Apache-2.0)"

# Share of the requests, median CV of the gaps over windows of 600 s, tokens at 1/50/90/99 %: the twelve clients of
# ServeGen's deepseek-r1 that send the most in one hour, 94 % of all requests.
REASONING_CLIENTS = (
    Client("c35", 0.4629, 1.12, (11, 69, 220, 1_584), (687, 3_749, 8_251, 15_261)),
    Client("c48", 0.2046, 1.00, (253, 265, 277, 462), (171, 482, 1_310, 2_813)),
    Client("c66", 0.0480, 1.31, (17, 59, 128, 233), (1_187, 6_076, 15_411, 22_027), "weibull"),
    Client("c18", 0.0386, 0.98, (4, 12, 73, 986), (228, 1_010, 1_510, 2_141)),
    Client("c62", 0.0361, 0.94, (735, 1_234, 1_426, 1_873), (150, 270, 806, 2_396)),
    Client("c53", 0.0289, 1.28, (90, 157, 1_141, 1_259), (103, 276, 458, 680)),
    Client("c30", 0.0249, 0.93, (8, 1_498, 9_477, 16_068), (207, 1_127, 1_950, 3_439)),
    Client("c68", 0.0227, 0.98, (32, 7_460, 13_157, 17_377), (224, 828, 1_395, 2_000)),
    Client("c19", 0.0205, 5.61, (224, 4_044, 10_076, 18_708), (78, 227, 419, 764), "weibull"),
    Client("c15", 0.0196, 1.03, (4_749, 15_841, 25_468, 35_559), (636, 1_170, 2_181, 3_557)),
    Client("c23", 0.0165, 4.83, (18, 241, 331, 438), (291, 600, 806, 1_154)),
    Client("c65", 0.0155, 1.77, (1_209, 27_424, 32_533, 37_807), (463, 973, 2_351, 4_096)),
)
REASONING_RATE = 10.76

# The twenty clients of ServeGen's m-large that send the most in one hour, 98 % of all requests. The deadlines are ours.
TENANT_CLIENTS = (
    Client("c61", 0.3193, 1.05, (840, 2_373, 2_392, 2_410), (79, 423, 599, 799)),
    Client("c143", 0.1695, 1.15, (540, 625, 756, 924), (2, 3, 8, 8), deadline_seconds=1.0),
    Client("c34", 0.0872, 0.93, (59, 63, 72, 79), (7, 12, 24, 84), deadline_seconds=1.0),
    Client("c78", 0.0742, 0.91, (391, 631, 868, 981), (1, 1, 1, 72), deadline_seconds=1.0),
    Client("c27", 0.0649, 1.32, (280, 289, 297, 305), (35, 58, 74, 90)),
    Client("c91", 0.0521, 0.98, (145, 984, 991, 1_944), (1, 27, 127, 291)),
    Client("c104", 0.0434, 2.76, (562, 579, 827, 839), (15, 41, 73, 164), "weibull"),
    Client("c12", 0.0314, 10.3, (1_610, 2_365, 2_540, 2_706), (357, 533, 643, 752), "weibull"),
    Client("c32", 0.0246, 0.98, (57, 3_252, 3_825, 4_087), (61, 710, 1_137, 1_862)),
    Client("c140", 0.0222, 3.23, (305, 805, 1_453, 7_331), (3, 33, 55, 105), "weibull"),
    Client("c36", 0.0171, 1.60, (266, 2_876, 3_233, 3_247), (7, 69, 95, 132)),
    Client("c48", 0.0162, 1.05, (144, 972, 3_360, 3_829), (6, 67, 150, 499)),
    Client("c17", 0.0118, 1.00, (1_383, 1_422, 1_449, 1_491), (411, 506, 587, 738)),
    Client("c56", 0.0097, 1.75, (214, 283, 334, 1_087), (27, 38, 66, 350), deadline_seconds=5.0),
    Client("c69", 0.0089, 1.46, (954, 971, 1_366, 1_648), (3, 11, 36, 59), deadline_seconds=5.0),
    Client("c83", 0.0075, 0.78, (61, 64, 1_171, 1_628), (19, 40, 63, 122), deadline_seconds=5.0),
    Client("c147", 0.0075, 1.27, (851, 1_752, 1_940, 2_100), (50, 93, 243, 507)),
    Client("c59", 0.0047, 1.95, (99, 110, 155, 155), (61, 73, 96, 125)),
    Client("c76", 0.0045, 0.90, (233, 274, 667, 673), (234, 414, 528, 634)),
    Client("c20", 0.0033, 1.93, (296, 550, 598, 617), (1, 3, 7, 10)),
)
TENANTS_RATE = 9.98

# Over 122,571 windows of 600 s of the clients of ServeGen's three language models and deepseek-r1 that send more than
# one request in 50 s: quantiles of the gaps' CV; 75 % of the windows are Gamma, 25 % Weibull.
POPULATION_CV: Curve = {0: 0.4, 5: 0.66, 10: 0.88, 25: 1.01, 50: 1.2, 75: 2.28, 90: 5.28, 95: 9.59, 100: 12.0}
POPULATION_GAMMA = 0.75
POPULATION = 50
POPULATION_RATE = 10.0


def reasoning(requests: int, seed: int) -> Trace:
    """Short questions with very long answers beside a few clients with long prompts.

    The twelve heaviest clients of deepseek-r1 in ServeGen, at its measured rate of 10.76 requests a second. Clients
    with long answers have short prompts and the other way round (rank correlation −0.5), as measured. The swings of a
    client's rate from one ten minutes to the next are left out. Source: Xiang et al., ServeGen, arXiv 2505.09999.
    """
    return mix_clients("reasoning", REASONING_CLIENTS, REASONING_RATE, requests, seed)


def tenants(requests: int, seed: int) -> Trace:
    """Twenty tenants of one service, one of which sends a third of the requests and more than half of the tokens.

    The twenty heaviest clients of m-large in ServeGen at 10 requests a second. Six of them want a first token within
    1 or 5 s: those deadlines are ours, given to tenants with short answers, as a program's calls have.
    Source: Xiang et al., ServeGen, arXiv 2505.09999.
    """
    return mix_clients("tenants", TENANT_CLIENTS, TENANTS_RATE, requests, seed)


def client_mix(requests: int, seed: int) -> Trace:
    """Fifty clients drawn from the population of ServeGen's; another seed gives other clients.

    Rates are log-normal with a deviation of 2 in the logarithm (measured: 2.0 to 3.2 by model), so that a few clients
    send most; burstiness follows the measured quantiles. A client's median lengths are log-normal around 400 and 60
    tokens (measured medians by model: 202 to 572 and 34 to 58, without deepseek-r1), with deviations of 1.3 and 1.6,
    and its 99th percentile is a log-normal multiple of them (median 1.7 and 2.2, 90th percentile 7.6 and 10.2).
    Source: Xiang et al., ServeGen, arXiv 2505.09999.
    """
    return mix_clients("client-mix", population(seed), POPULATION_RATE, requests, seed)


def population(seed: int) -> tuple[Client, ...]:
    """The clients of `client-mix` under this seed."""
    rng = stream(seed, "client-mix", "population")
    shares = rng.lognormal(0.0, 2.0, POPULATION)
    cvs = draw_from_quantiles(rng, POPULATION_CV, POPULATION)
    gamma = rng.random(POPULATION) < POPULATION_GAMMA
    # Medians are kept at two deviations, so that no client's prompts leave an ordinary context window.
    prompt = 400 * np.exp(1.3 * np.clip(rng.standard_normal(POPULATION), -2, 2))
    output = 60 * np.exp(1.6 * np.clip(rng.standard_normal(POPULATION), -2, 2))
    prompt_tail = _tails(rng, 1.7, 7.6)
    output_tail = _tails(rng, 2.2, 10.2)
    return tuple(
        Client(
            f"client-{index + 1:02}",
            float(shares[index]),
            float(cvs[index]),
            _curve(float(prompt[index]), float(prompt_tail[index])),
            _curve(float(output[index]), float(output_tail[index])),
            "gamma" if gamma[index] else "weibull",
        )
        for index in range(POPULATION)
    )


def _tails(rng: np.random.Generator, p50: float, p90: float) -> npt.NDArray[np.float64]:
    """99th percentile ÷ median of each client: log-normal with these quantiles, kept between 1 and 20."""
    deviation = np.log(p90 / p50) / 1.2815515655446004  # the normal distribution's 90 % point
    tails: npt.NDArray[np.float64] = p50 * np.exp(deviation * rng.standard_normal(POPULATION))
    return np.clip(tails, 1, 20)


def _curve(median: float, tail: float) -> tuple[float, float, float, float]:
    """A log-normal's quantiles: 1.28 of 2.33 deviations at 90 %."""
    return (median / tail, median, median * tail**0.551, median * tail)


REASONING = Workload(
    "reasoning",
    "short questions with answers of thousands of tokens, beside a few clients with long prompts",
    f"the twelve heaviest deepseek-r1 clients of {_SERVEGEN}",
    reasoning,
)
TENANTS = Workload(
    "tenants",
    "twenty tenants, one of them heavy, some with deadlines",
    f"the twenty heaviest m-large clients of {_SERVEGEN}; deadlines ours",
    tenants,
)
CLIENT_MIX = Workload(
    "client-mix",
    "fifty clients with rates, burstiness and lengths of their own; another seed draws other clients",
    f"distributions over the clients of {_SERVEGEN}",
    client_mix,
)
