"""Who is logged in to the Hub, and whether they may write there."""

from typing import Any

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError

from quantkit.errors import NetworkError, NotFoundError
from quantkit.weights.remote import ask, client

READERS = ("read", "no_access")  # roles of a token, or of a member of an organisation, that cannot write


def writer(repo_id: str) -> str:
    """The user who is logged in and may write to the repository.

    What a fine-grained token may do is left to the Hub, which refuses before a file is uploaded.

    Args:
        repo_id: organisation/name or user/name; it need not exist.

    Returns:
        The user's name.

    Raises:
        NotFoundError: nobody is logged in, the token is not valid, or it may not write there.
        NetworkError: the Hub was not reached, or HF_HUB_OFFLINE is set.
    """
    if constants.HF_HUB_OFFLINE:
        raise NetworkError("HF_HUB_OFFLINE is set, and a push needs the Hub", "unset HF_HUB_OFFLINE")
    api = client()
    if not (api.token or get_token()):
        raise NotFoundError(
            "not logged in to the Hub", "`hf auth login` with a token that may write, or set HF_TOKEN to one"
        )
    account = ask(repo_id, lambda: _whoami(api))
    _refuse_readers(account, repo_id)
    return str(account["name"])


def tokens() -> list[str]:
    """The user's tokens, to see that no file holds one."""
    return [token for token in (client().token, get_token()) if isinstance(token, str)]


def _whoami(api: HfApi) -> dict[str, Any]:
    try:
        return api.whoami()
    except HfHubHTTPError as error:
        if error.response.status_code != 401:
            raise
        raise NotFoundError(
            "the Hub does not accept this token (HTTP 401)",
            "`hf auth login --force` saves another; HF_TOKEN, where it is set, goes before the saved one",
        ) from error


def _refuse_readers(account: dict[str, Any], repo_id: str) -> None:
    namespace = repo_id.partition("/")[0]
    token = (account.get("auth") or {}).get("accessToken") or {}
    if token.get("role") in READERS:
        page = f"{constants.ENDPOINT}/settings/tokens"
        raise NotFoundError(f"the token of {account['name']} may read only", f"make one that may write at {page}")
    if namespace == account["name"]:
        return
    roles = {one.get("name"): one.get("roleInOrg") for one in account.get("orgs") or []}
    if namespace not in roles or roles[namespace] in READERS:
        why = "they may only read there" if namespace in roles else "they are no member of it"
        open_to = [account["name"], *sorted(name for name, role in roles.items() if role not in READERS)]
        raise NotFoundError(f"{account['name']} may not write to {namespace}: {why}", f"open: {', '.join(open_to)}")
