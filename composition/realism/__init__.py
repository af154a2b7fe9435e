"""This package asks how real the composed tumours look, beside the paper's metrics: it compares crops around them with
crops around real tumours, as distributions.

    OUT/realism.md, realism.csv   one line for each set of composites, and one for real against real, the floor
    OUT/crops.png                 some crops of every set. It shows the user's own scans: look whether it may be shown
    OUT/left_out.json             what could not be used, by set and reason
    OUT/parts/                    what is measured already; the same command goes on from it
    OUT/reader_study/             with --reader-study: crops, index.html and sheet.csv, to be given to readers
    OUT/reader_study_key/key.csv  which crop is what; not to be given to them

crops.py and groups.py say what is compared, and classifier.py, radiomics.py and mmd.py by which measures.
metrics/intervals.py says how sure they are. study.py and scoring.py are the reader study.
"""

from sd21.lazy import lazily

__getattr__, __dir__, __all__ = lazily(__name__, {"run": ("RealismRequest", "run_realism")})
