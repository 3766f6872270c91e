"""Online-logit distillation: trains a draft for any model that the engine serves, running that model live."""
