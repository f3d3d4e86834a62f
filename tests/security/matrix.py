"""What each kind of caller may do, under each kind of parent: the code of every method.

The table is written out here, and not made from the code's own: it says what the server must do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

# What the caller is for the operation, or for the parent. NOTHING is OK with an empty list,
# MISSING is OK, saying that the operation was not found.
TABLE = """
                                               unknown  stranger  viewer  editor  producer creator admin

yandex.cloud.operation.OperationService/Get    UNAUTH   NOT_FOUND OK      OK      OK       OK      OK
yandex.cloud.operation.OperationService/Cancel UNAUTH   NOT_FOUND DENIED  OK      DENIED   OK      OK
opservice.v1.OperationRecordService/Get        UNAUTH   NOT_FOUND OK      OK      OK       OK      OK
opservice.v1.OperationRecordService/BatchGet   UNAUTH   MISSING   OK      OK      OK       OK      OK
opservice.v1.OperationRecordService/List       UNAUTH   NOTHING   OK      OK      OK       OK      OK
opservice.v1.OperationRecordService/Wait       UNAUTH   NOT_FOUND OK      OK      OK       OK      OK
opservice.v1.OperationRecordService/Watch      UNAUTH   NOT_FOUND OK      OK      OK       OK      OK
opservice.v1.OperationRecordService/BatchWatch UNAUTH   MISSING   OK      OK      OK       OK      OK
opservice.v1.OperationRecordService/Delete     UNAUTH   NOT_FOUND DENIED  OK      DENIED   DENIED  OK
opservice.v1.ProducerService/Start             UNAUTH   DENIED    DENIED  DENIED  OK       DENIED  OK
opservice.v1.ProducerService/Renew             UNAUTH   NOT_FOUND DENIED  DENIED  OK       DENIED  OK
opservice.v1.ProducerService/Complete          UNAUTH   NOT_FOUND DENIED  DENIED  OK       DENIED  OK
opservice.v1.ProducerService/Fail              UNAUTH   NOT_FOUND DENIED  DENIED  OK       DENIED  OK
google.longrunning.Operations/GetOperation     UNAUTH   NOT_FOUND OK      OK      OK       OK      OK
google.longrunning.Operations/ListOperations   UNAUTH   NOTHING   OK      OK      OK       OK      OK
google.longrunning.Operations/WaitOperation    UNAUTH   NOT_FOUND OK      OK      OK       OK      OK
google.longrunning.Operations/CancelOperation  UNAUTH   NOT_FOUND DENIED  OK      DENIED   OK      OK
google.longrunning.Operations/DeleteOperation  UNAUTH   NOT_FOUND DENIED  OK      DENIED   DENIED  OK
yandex.cloud.endpoint.ApiEndpointService/Get   OK       OK        OK      OK      OK       OK      OK
yandex.cloud.endpoint.ApiEndpointService/List  OK       OK        OK      OK      OK       OK      OK
grpc.health.v1.Health/Check                    OK       OK        OK      OK      OK       OK      OK
grpc.health.v1.Health/Watch                    OK       OK        OK      OK      OK       OK      OK
grpc.reflection.v1.ServerReflection/ServerReflectionInfo
                                               UNAUTH   OK        OK      OK      OK       OK      OK
grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo
                                               UNAUTH   OK        OK      OK      OK       OK      OK
"""
OUTSIDE = "outside"
"""Who gets no connection: every call of theirs is UNAVAILABLE."""


def read_table() -> dict[str, dict[str, str]]:
    """By method, then by what the caller is."""
    words = TABLE.split()
    first = next(index for index, word in enumerate(words) if "/" in word)
    roles, width = words[:first], first + 1
    rows = [words[at : at + width] for at in range(first, len(words), width)]
    return {f"/{method}": dict(zip(roles, row, strict=True)) for method, *row in rows}


EXPECTED = read_table()

HERE, BELOW, ALIKE, ELSEWHERE, NONE = "folders/a", "folders/a/b", "folders/ab", "projects/x", ""
PARENTS = (HERE, BELOW, ALIKE, ELSEWHERE, NONE)


@dataclass(frozen=True)
class Caller:
    """What it is for each parent; `otherwise` for those that are not named."""

    at: Mapping[str, str] = field(default_factory=dict)
    otherwise: str = "stranger"
    grants: Sequence[str] = ()
    parents: Sequence[str] = PARENTS

    def role(self, parent: str) -> str:
        return self.at.get(parent, self.otherwise)

    def expected(self, method: str, parent: str) -> str:
        role = self.role(parent)
        if role == OUTSIDE:
            return "UNAVAILABLE"
        row = EXPECTED[method]
        somewhere = {row[each] for each in (*self.at.values(), self.otherwise)}
        # Who may do it nowhere, and not by creating it either, is told so before the request is read.
        if row[role] == "NOT_FOUND" and not {"OK"} & {*somewhere, row["creator"]}:
            return "DENIED"
        return row[role]


NOBODY = Caller(otherwise="unknown", grants=["admin:*"], parents=(HERE, NONE))
"""Who would have every right everywhere, could they but show who they are."""

CORE = {
    "viewer": Caller({HERE: "viewer"}, grants=[f"viewer:{HERE}"]),
    "editor, below as well": Caller({HERE: "editor", BELOW: "editor"}, grants=[f"editor:{HERE}/*"]),
    "producer": Caller({HERE: "producer"}, grants=[f"producer:{HERE}"]),
    "admin, below as well": Caller({HERE: "admin", BELOW: "admin"}, grants=[f"admin:{HERE}/*"]),
    "other tenant": Caller(
        {ALIKE: "admin"},
        grants=[f"{role}:{ALIKE}/*" for role in ("viewer", "editor", "producer", "admin")],
    ),
    "creator": Caller(otherwise="creator"),
    "no grants": Caller(),
}
TOKENS = {
    **CORE,
    "viewer, below as well": Caller({HERE: "viewer", BELOW: "viewer"}, grants=[f"viewer:{HERE}/*"]),
    "editor": Caller({HERE: "editor"}, grants=[f"editor:{HERE}"]),
    "producer, below as well": Caller(
        {HERE: "producer", BELOW: "producer"}, grants=[f"producer:{HERE}/*"]
    ),
    "admin": Caller({HERE: "admin"}, grants=[f"admin:{HERE}"]),
    "viewer of all": Caller(otherwise="viewer", grants=["viewer:*"]),
    "admin of all": Caller(otherwise="admin", grants=["admin:*"]),
    "producer without a parent": Caller({NONE: "producer"}, grants=["producer:"]),
    "static token": Caller({HERE: "editor"}, grants=[f"editor:{HERE}"]),
    "key RS256": Caller({HERE: "editor"}, grants=[f"editor:{HERE}"]),
    "anonymous": NOBODY,
    "expired": NOBODY,
    "wrong audience": NOBODY,
    "wrong issuer": NOBODY,
    "algorithm none": NOBODY,
    "HS256 with the public key": NOBODY,
    "tampered claims": NOBODY,
    "tampered signature": NOBODY,
    "unknown key": NOBODY,
    "another key by a known name": NOBODY,
    "without exp": NOBODY,
    "without aud": NOBODY,
    "without iss": NOBODY,
    "without sub": NOBODY,
    "subject that is no text": NOBODY,
    "empty subject": NOBODY,
    "grants that are none": NOBODY,
    "no token at all": NOBODY,
    "another scheme": NOBODY,
    "two tokens": NOBODY,
    "expired static token": NOBODY,
    "unknown static token": NOBODY,
}
CERTIFICATES = {
    "certificate, by its URI": Caller({HERE: "editor"}),
    "certificate, by its DNS name": Caller({HERE: "producer", BELOW: "producer"}),
    "certificate without grants": Caller(),
    "certificate of the creator": Caller(otherwise="creator"),
    "certificate without names": NOBODY,
    "certificate and a token": Caller({HERE: "viewer"}, grants=[f"viewer:{HERE}"]),
    "certificate and an expired token": NOBODY,
    "certificate of another authority": Caller(otherwise=OUTSIDE),
    "no certificate": Caller(otherwise=OUTSIDE, grants=["admin:*"]),
}
ALL = {**TOKENS, **CERTIFICATES}
CREATORS = {"creator": "creator", "certificate of the creator": "spiffe://example/creator"}
"""The subjects of those who call for operations of their own."""
