"""Knowledge distillation: a student learns its teacher's distributions."""
