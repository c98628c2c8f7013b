"""A caller who has changed is looked up anew, from the moment at which the change is there."""

from uuid import UUID

from sqlalchemy import event

from deployerp.api.changes import Change


def forget_after(change: Change, actor_id: UUID) -> None:
    """Has this process forget a user or a key once the change is committed.

    Not among what is done beside the answer: the next request may come sooner.
    """
    authenticator = change.shared.authenticator
    event.listen(change.session.sync_session, "after_commit", lambda _: authenticator.forget(actor_id))
