"""The trainer of each stage, by families that share a module each: only what differs between them.

A family has ``config(stage, values)`` and ``build(job, args, model, data, common)``, where ``common`` is what every
trainer takes; one that trains heads ``head(job, data)`` too.
"""
