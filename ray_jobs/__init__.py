"""Entries for `ray job submit`: one thin file a job, each the verb of the same name with a status beside the run.

    ray job submit --working-dir . -- python -m ray_jobs.distill --recipe paper_b --config run.yaml

`pathryoshka submit` does the same with a look at the cluster first. Every entry goes on where the run of that name
stands, so submitting again is how to resume.
"""
