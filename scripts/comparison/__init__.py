# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""What is compared: tasks, arms and presets, the cells that they make, and what the records of the cells say.

A cell is one training run: a task, an arm, a learning rate and a seed, at the size of a preset. Its record is a JSON
file, `results/PRESET/TASK/ARM_rateRATE_seedSEED.json`. Every arm is trained with the same learning rates from the first
seed, and with the rate that was best on the validation split from the other seeds.
"""
