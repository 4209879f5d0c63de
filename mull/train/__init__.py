"""From a recipe to a thinking model: pretraining, SFT, reinforcement learning, distillation."""
