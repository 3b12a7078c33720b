"""What a test says to the sandbox's 3DS sessions and to its post office.

No real API has any of it.  It must never tell a secret: neither of a session nor of a webhook.
"""

from broker.sandbox.control import bad_order, json_object
from broker.sandbox.deliveries import Deliveries, is_here
from broker.sandbox.exchange import Call, RefusedError, Reply, as_json
from broker.sandbox.threeds_flow import Sessions
from broker.sandbox.threeds_session import STATUSES, Session


class ThreeDsControl:
    """One method for each thing that can be told or asked."""

    def __init__(self, sessions: Sessions, deliveries: Deliveries) -> None:
        self._sessions = sessions
        self._deliveries = deliveries

    def session(self, call: Call) -> Reply:
        session = self._sessions.by_id(call.path_parameter("id"))
        if session is None:
            raise RefusedError(as_json(404, {"error": "no such session"}))
        if call.method == "POST":
            status = json_object(call).get("status")
            if status not in STATUSES:
                raise bad_order(f"status must be one of {', '.join(STATUSES)}")
            self._sessions.force(session, status)
        return as_json(200, _told(session))

    def webhooks(self, call: Call) -> Reply:
        targets = self._deliveries.targets
        if call.method == "POST":
            order = json_object(call)
            url, key = order.get("url"), order.get("key")
            if not isinstance(url, str) or not is_here(url):
                raise bad_order("url must be on this machine")
            if not isinstance(key, str) or not key:
                raise bad_order("key must be a string")
            targets[url] = key
            return as_json(201, {"urls": list(targets)})
        if call.method == "DELETE":
            targets.clear()
            return Reply(204)
        return as_json(200, {"urls": list(targets)})

    def deliveries(self, call: Call) -> Reply:
        return as_json(200, {"deliveries": self._deliveries.attempts()})

    def redeliver(self, call: Call) -> Reply:
        event_id = json_object(call).get("event_id")
        if not isinstance(event_id, str) or not self._deliveries.redeliver(event_id):
            raise bad_order("event_id must be of an event that was sent")
        return Reply(202)


def _told(session: Session) -> dict[str, object]:
    return {
        "id": session.id,
        "status": session.status,
        "completed": session.completed,
        "channel": session.channel,
        "method_seen": session.method_seen,
        "busy": session.busy,
    }
