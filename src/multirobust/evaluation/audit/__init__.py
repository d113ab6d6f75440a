"""Looks for what makes a robust accuracy meaningless: before the attacks, and in their outcomes."""

from multirobust.evaluation.audit.finding import Finding
from multirobust.evaluation.audit.model import audit_model
from multirobust.evaluation.audit.results import audit_outcomes

__all__ = ["Finding", "audit_model", "audit_outcomes"]
