"""Parts that stages are made of: the policy, optimiser steps, evaluation, updates, settings."""
