"""TRL's trainers, with what they get wrong put right."""
