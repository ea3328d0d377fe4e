"""Ray's Jobs API with errors in words. Nothing here reads or passes on a token: Ray's client takes it from
RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token where RAY_AUTH_MODE=token, and sends it as a header only."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator

import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

TIMEOUT_S = 20


class SubmitError(RuntimeError):
    """A job that could not be submitted, found or followed; the sentence says what to do."""


def connect(address: str | None) -> JobSubmissionClient:
    """The Jobs API at `address` (http://host:8265), else at RAY_API_SERVER_ADDRESS or RAY_ADDRESS.

    Raises:
        SubmitError: no address, nobody there, no token or a wrong one.
    """
    address = address or os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS")
    if not address:
        raise SubmitError(
            "no cluster named: say --address http://127.0.0.1:8265 (forwarded from its head) or set RAY_ADDRESS"
        )
    logging.getLogger("ray").setLevel(logging.WARNING)  # what it uploads and which socket it closes is no news
    with in_words(address):
        return JobSubmissionClient(address, create_cluster_if_needed=False)


@contextlib.contextmanager
def in_words(address: str) -> Iterator[None]:
    """Turns what Ray's client raises into one sentence."""
    try:
        yield
    except (ConnectionError, requests.ConnectionError, requests.Timeout) as error:
        raise SubmitError(
            f"no Ray cluster answers at {address}; is the head up, and its port 8265 forwarded to here?"
        ) from error
    except (RuntimeError, ValueError, AuthenticationError) as error:
        said = str(error)
        if "Authentication required" in said or "couldn't find an authentication token" in said:
            raise SubmitError(
                f"{address} wants a token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to its file"
            ) from None
        if "Authentication failed" in said:
            raise SubmitError(f"{address} refused the token; fetch the cluster's present one") from None
        if "does not exist" in said:
            raise SubmitError(f"{address} knows no such job; see `pathryoshka submit list`") from None
        raise SubmitError(
            f"{address} answered: {said.strip().splitlines()[0] if said.strip() else type(error).__name__}"
        ) from error
