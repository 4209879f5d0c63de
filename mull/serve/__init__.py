"""HTTP: the API that existing clients already speak, and the page that sits on it.

guard (who may speak) -> wire | api (forms) -> answers (what runs) -> models (on what).
"""
