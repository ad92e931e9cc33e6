"""Lengths as the gateway predicts them: as a client with a key told, else as the predictor in use says."""

from __future__ import annotations

from headway.domain.estimate import LengthEstimate, PointEstimate
from headway.domain.request import RequestView
from headway.gateway.queueing.internal_errors import InternalErrors
from headway.gateway.queueing.request_state import QueuedRequest
from headway.policies.contracts import LengthPredictor
from headway.policies.prediction.running_mean import RunningMean
from headway.scheduling.checked_policies import PolicyFault


class HintedPrediction:
    """The predictor in use, but a hinted output length counts as it is: the API key allows the client to give one.

    (The vLLM plug-in's `HintedLengths` corrects hints, because there any client may give one.) Where the predictor
    fails, 256 tokens stand in (`RunningMean`'s prior); after `faults_max` faults in a row it is asked no more.
    """

    def __init__(self, inner: LengthPredictor, errors: InternalErrors, faults_max: int) -> None:
        self._inner = inner
        self._errors = errors
        self._faults_max = faults_max
        self._faults = 0  # in a row
        self.is_replaced = False  # the predictor is asked no more
        self._stand_in = RunningMean()
        self._predicted: RequestView | None = None  # it has its estimate already

    def predict_early(self, queued: QueuedRequest) -> LengthEstimate:
        """What `predict` will say of a request that has not arrived yet: the predictor is asked once."""
        queued.estimate = self.predict(queued)
        self._predicted = queued
        return queued.estimate

    def predict(self, request: RequestView) -> LengthEstimate:
        """The hint as a point, else what the predictor says."""
        if request is self._predicted and request.estimate is not None:
            self._predicted = None
            return request.estimate
        hinted = request.arrived.hinted_output_tokens if isinstance(request, QueuedRequest) else None
        if hinted is not None:
            return PointEstimate(hinted, "client")
        if not self.is_replaced:
            try:
                estimate = self._inner.predict(request)
            except PolicyFault as fault:
                self._faults += 1
                self.is_replaced = self._faults >= self._faults_max
                self._errors.policy_fault(fault)
            else:
                self._faults = 0
                return estimate
        return self._stand_in.predict(request)
