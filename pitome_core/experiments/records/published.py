"""Figures quoted from the paper's tables, as context.

Plots draw them as hollow markers. They are never a threshold, and never mixed with numbers that are measured here.
"""

from __future__ import annotations

# Table 2, retrieval, retrained, r = .925: R@1 + R@5 + R@10 of text retrieval, and of image retrieval.
TABLE_2 = {
    "CLIP, Flickr30k": {
        "whole": (291.80, 275.52), "ToMe": (287.30, 270.52), "ToFu": (288.32, 269.68), "DCT": (279.70, 258.24),
        "DiffRate": (289.33, 266.45), "PiToMe": (291.50, 270.94),
    },
    "BLIP, Flickr30k": {
        "whole": (296.70, 284.06), "ToMe": (294.80, 280.64), "ToFu": (296.46, 281.04), "DCT": (291.79, 275.22),
        "DiffRate": (292.77, 279.46), "PiToMe": (296.00, 282.36),
    },
    "CLIP, COCO": {
        "whole": (256.30, 222.21), "ToMe": (248.64, 215.03), "ToFu": (248.99, 216.56), "DCT": (240.04, 211.28),
        "DiffRate": (248.87, 215.45), "PiToMe": (250.70, 217.01),
    },
    "BLIP, COCO": {
        "whole": (273.72, 241.30), "ToMe": (266.86, 234.67), "ToFu": (266.18, 233.87), "DCT": (264.38, 230.19),
        "DiffRate": (265.45, 235.11), "PiToMe": (268.42, 236.25),
    },
}

# Table 3, LLaVA-1.5-7B, off the shelf, r = .9.
TABLE_3 = {
    "VQAv2": {"whole": 76.6, "ToMe": 75.2, "ToFu": 75.1, "DCT": 67.8, "DiffRate": 72.0, "PiToMe": 75.4},
    "GQA": {"whole": 62.0, "ToMe": 59.5, "ToFu": 59.4, "DCT": 56.2, "DiffRate": 57.9, "PiToMe": 59.9},
    "VizWiz": {"whole": 54.4, "ToMe": 55.9, "ToFu": 55.8, "DCT": 55.7, "DiffRate": 55.4, "PiToMe": 55.9},
    "ScienceQA": {"whole": 70.4, "ToMe": 68.7, "ToFu": 68.5, "DCT": 65.8, "DiffRate": 66.4, "PiToMe": 69.0},
    "TextVQA": {"whole": 46.0, "ToMe": 41.1, "ToFu": 41.2, "DCT": 26.3, "DiffRate": 30.6, "PiToMe": 43.0},
}

# Table 5, ImageNet-1k top-1 in per cent: (off the shelf, trained); the whole model's line has its accuracy and GFLOPs.
# `gflops` is the cost of every merged model in the column.
TABLE_5 = {
    "DeiT-T": {
        "gflops": 0.79, "whole": (72.3, 1.2),
        "ToMe": (68.9, 70.0), "ToFu": (69.6, 70.5), "DCT": (67.6, 68.7), "DiffRate": (69.9, 70.7),
        "PiToMe": (70.8, 71.6),
    },
    "DeiT-S": {
        "gflops": 2.9, "whole": (79.8, 4.6),
        "ToMe": (77.7, 79.4), "ToFu": (77.8, 79.6), "DCT": (74.8, 78.6), "DiffRate": (76.8, 79.5),
        "PiToMe": (79.1, 79.8),
    },
    "MAE-L": {
        "gflops": 31.0, "whole": (85.7, 61.6),
        "ToMe": (82.9, 85.0), "ToFu": (83.8, 85.1), "DCT": (82.8, 84.4), "DiffRate": (83.2, 85.3),
        "PiToMe": (84.6, 85.3),
    },
    "MAE-H": {
        "gflops": 92.8, "whole": (86.9, 167.4),
        "ToMe": (85.6, 86.4), "ToFu": (85.8, 86.4), "DCT": (84.3, 86.0), "DiffRate": (85.9, 86.6),
        "PiToMe": (86.4, 86.7),
    },
}

# Table 6, text classification, BERT merged in the first three layers at r = .8: accuracy in per cent, off the shelf.
TABLE_6 = {
    "SST-2": {"whole": 91.4, "PiToMe": 91.0, "ToMe": 91.2, "ToFu": 89.8, "DCT": 90.7, "DiffRate": 89.7},
    "IMDb": {"whole": 94.0, "PiToMe": 93.2, "ToMe": 93.3, "ToFu": 92.6, "DCT": 92.4, "DiffRate": 92.4},
}
