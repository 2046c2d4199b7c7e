"""What a client did wrong, or met, in OpenAI's form of an error."""

from collections.abc import Mapping


class ApiError(Exception):
    """A request that is not answered.

    Args:
        status: of HTTP.
        code: what a client's program can tell errors apart by.
        param: the field of the body that is meant.
        headers: sent along.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = dict(headers or {})

    def to_dict(self) -> dict:
        """The body of the response."""
        # By the type clients decide whether to send the request again as it is.
        kind = "invalid_request_error" if self.status < 500 and self.status != 429 else "server_error"
        if self.status == 429:
            kind = "rate_limit_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}
