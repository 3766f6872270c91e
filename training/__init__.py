"""Online-logit distillation: a draft for any target that the engine serves, taught by the live target."""
