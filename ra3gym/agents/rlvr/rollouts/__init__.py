"""Rollouts: sample programs for tasks, end them in time, and have them graded."""
