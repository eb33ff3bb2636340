"""The one shared library of Bourse: contract and plumbing, no service's business."""
