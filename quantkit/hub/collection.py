"""A collection of the Hub that lists a repository."""

from quantkit.weights.remote import ask, client


def add_to_collection(repo_id: str, title: str, private: bool) -> str:
    """List a repository in its namespace's collection of that title, which is made if it is not there.

    It is safe to repeat: the Hub has one collection of a title in a namespace, and one entry of a repository in it.

    Args:
        repo_id: organisation/name.
        title: of the collection.
        private: of a new collection.

    Returns:
        The collection's name on the Hub: `organisation/title-number`.

    Raises:
        NotFoundError: this user may not.
        NetworkError: the Hub was not reached.
    """
    api, namespace = client(), repo_id.partition("/")[0]
    made = ask(repo_id, lambda: api.create_collection(title, namespace=namespace, private=private, exists_ok=True))
    ask(repo_id, lambda: api.add_collection_item(made.slug, repo_id, "model", exists_ok=True))
    return made.slug
