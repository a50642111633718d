from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class EventType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    NONE: _ClassVar[EventType]
    ADDED: _ClassVar[EventType]
    MODIFIED: _ClassVar[EventType]
    DELETED: _ClassVar[EventType]
    INIT_DONE: _ClassVar[EventType]
NONE: EventType
ADDED: EventType
MODIFIED: EventType
DELETED: EventType
INIT_DONE: EventType

class KV(_message.Message):
    __slots__ = ("key", "val")
    KEY_FIELD_NUMBER: _ClassVar[int]
    VAL_FIELD_NUMBER: _ClassVar[int]
    key: str
    val: str
    def __init__(self, key: _Optional[str] = ..., val: _Optional[str] = ...) -> None: ...

class Obj(_message.Message):
    __slots__ = ("kind", "tenant", "namespace", "name", "channel_rev", "revision", "src_epoch", "labels", "annotations", "data")
    KIND_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    CHANNEL_REV_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    SRC_EPOCH_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    ANNOTATIONS_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    kind: str
    tenant: str
    namespace: str
    name: str
    channel_rev: int
    revision: int
    src_epoch: int
    labels: _containers.RepeatedCompositeFieldContainer[KV]
    annotations: _containers.RepeatedCompositeFieldContainer[KV]
    data: str
    def __init__(self, kind: _Optional[str] = ..., tenant: _Optional[str] = ..., namespace: _Optional[str] = ..., name: _Optional[str] = ..., channel_rev: _Optional[int] = ..., revision: _Optional[int] = ..., src_epoch: _Optional[int] = ..., labels: _Optional[_Iterable[_Union[KV, _Mapping]]] = ..., annotations: _Optional[_Iterable[_Union[KV, _Mapping]]] = ..., data: _Optional[str] = ...) -> None: ...

class VersionRequestMessage(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class VersionResponseMessage(_message.Message):
    __slots__ = ("version",)
    VERSION_FIELD_NUMBER: _ClassVar[int]
    version: str
    def __init__(self, version: _Optional[str] = ...) -> None: ...

class UidRequestMessage(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class UidResponseMessage(_message.Message):
    __slots__ = ("error", "uid")
    ERROR_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    error: str
    uid: int
    def __init__(self, error: _Optional[str] = ..., uid: _Optional[int] = ...) -> None: ...

class GetRequestMessage(_message.Message):
    __slots__ = ("obj_type", "tenant", "namespace", "name", "revision")
    OBJ_TYPE_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    obj_type: str
    tenant: str
    namespace: str
    name: str
    revision: int
    def __init__(self, obj_type: _Optional[str] = ..., tenant: _Optional[str] = ..., namespace: _Optional[str] = ..., name: _Optional[str] = ..., revision: _Optional[int] = ...) -> None: ...

class GetResponseMessage(_message.Message):
    __slots__ = ("error", "obj")
    ERROR_FIELD_NUMBER: _ClassVar[int]
    OBJ_FIELD_NUMBER: _ClassVar[int]
    error: str
    obj: Obj
    def __init__(self, error: _Optional[str] = ..., obj: _Optional[_Union[Obj, _Mapping]] = ...) -> None: ...

class ListRequestMessage(_message.Message):
    __slots__ = ("obj_type", "tenant", "namespace", "revision", "label_selector", "field_selector", "batched")
    OBJ_TYPE_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    LABEL_SELECTOR_FIELD_NUMBER: _ClassVar[int]
    FIELD_SELECTOR_FIELD_NUMBER: _ClassVar[int]
    BATCHED_FIELD_NUMBER: _ClassVar[int]
    obj_type: str
    tenant: str
    namespace: str
    revision: int
    label_selector: str
    field_selector: str
    batched: bool
    def __init__(self, obj_type: _Optional[str] = ..., tenant: _Optional[str] = ..., namespace: _Optional[str] = ..., revision: _Optional[int] = ..., label_selector: _Optional[str] = ..., field_selector: _Optional[str] = ..., batched: _Optional[bool] = ...) -> None: ...

class ListResponseMessage(_message.Message):
    __slots__ = ("error", "revision", "objs")
    ERROR_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    OBJS_FIELD_NUMBER: _ClassVar[int]
    error: str
    revision: int
    objs: _containers.RepeatedCompositeFieldContainer[Obj]
    def __init__(self, error: _Optional[str] = ..., revision: _Optional[int] = ..., objs: _Optional[_Iterable[_Union[Obj, _Mapping]]] = ...) -> None: ...

class WEvent(_message.Message):
    __slots__ = ("event_type", "obj", "batch")
    EVENT_TYPE_FIELD_NUMBER: _ClassVar[int]
    OBJ_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    event_type: EventType
    obj: Obj
    batch: _containers.RepeatedCompositeFieldContainer[Obj]
    def __init__(self, event_type: _Optional[_Union[EventType, str]] = ..., obj: _Optional[_Union[Obj, _Mapping]] = ..., batch: _Optional[_Iterable[_Union[Obj, _Mapping]]] = ...) -> None: ...

class CreateRequestMessage(_message.Message):
    __slots__ = ("obj", "lease")
    OBJ_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    obj: Obj
    lease: int
    def __init__(self, obj: _Optional[_Union[Obj, _Mapping]] = ..., lease: _Optional[int] = ...) -> None: ...

class CreateResponseMessage(_message.Message):
    __slots__ = ("error", "revision")
    ERROR_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    error: str
    revision: int
    def __init__(self, error: _Optional[str] = ..., revision: _Optional[int] = ...) -> None: ...

class UpdateRequestMessage(_message.Message):
    __slots__ = ("expect_rev", "obj", "lease")
    EXPECT_REV_FIELD_NUMBER: _ClassVar[int]
    OBJ_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    expect_rev: int
    obj: Obj
    lease: int
    def __init__(self, expect_rev: _Optional[int] = ..., obj: _Optional[_Union[Obj, _Mapping]] = ..., lease: _Optional[int] = ...) -> None: ...

class UpdateResponseMessage(_message.Message):
    __slots__ = ("error", "revision")
    ERROR_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    error: str
    revision: int
    def __init__(self, error: _Optional[str] = ..., revision: _Optional[int] = ...) -> None: ...

class DeleteRequestMessage(_message.Message):
    __slots__ = ("obj_type", "tenant", "namespace", "name", "expect_rev", "src_epoch")
    OBJ_TYPE_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    EXPECT_REV_FIELD_NUMBER: _ClassVar[int]
    SRC_EPOCH_FIELD_NUMBER: _ClassVar[int]
    obj_type: str
    tenant: str
    namespace: str
    name: str
    expect_rev: int
    src_epoch: int
    def __init__(self, obj_type: _Optional[str] = ..., tenant: _Optional[str] = ..., namespace: _Optional[str] = ..., name: _Optional[str] = ..., expect_rev: _Optional[int] = ..., src_epoch: _Optional[int] = ...) -> None: ...

class DeleteResponseMessage(_message.Message):
    __slots__ = ("error", "revision")
    ERROR_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    error: str
    revision: int
    def __init__(self, error: _Optional[str] = ..., revision: _Optional[int] = ...) -> None: ...

class GrantLeaseRequest(_message.Message):
    __slots__ = ("ttl_ms",)
    TTL_MS_FIELD_NUMBER: _ClassVar[int]
    ttl_ms: int
    def __init__(self, ttl_ms: _Optional[int] = ...) -> None: ...

class GrantLeaseResponse(_message.Message):
    __slots__ = ("error", "lease", "ttl_ms")
    ERROR_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    TTL_MS_FIELD_NUMBER: _ClassVar[int]
    error: str
    lease: int
    ttl_ms: int
    def __init__(self, error: _Optional[str] = ..., lease: _Optional[int] = ..., ttl_ms: _Optional[int] = ...) -> None: ...

class KeepLeaseRequest(_message.Message):
    __slots__ = ("lease",)
    LEASE_FIELD_NUMBER: _ClassVar[int]
    lease: int
    def __init__(self, lease: _Optional[int] = ...) -> None: ...

class KeepLeaseResponse(_message.Message):
    __slots__ = ("error", "ttl_ms")
    ERROR_FIELD_NUMBER: _ClassVar[int]
    TTL_MS_FIELD_NUMBER: _ClassVar[int]
    error: str
    ttl_ms: int
    def __init__(self, error: _Optional[str] = ..., ttl_ms: _Optional[int] = ...) -> None: ...

class EndLeaseRequest(_message.Message):
    __slots__ = ("lease",)
    LEASE_FIELD_NUMBER: _ClassVar[int]
    lease: int
    def __init__(self, lease: _Optional[int] = ...) -> None: ...

class EndLeaseResponse(_message.Message):
    __slots__ = ("error",)
    ERROR_FIELD_NUMBER: _ClassVar[int]
    error: str
    def __init__(self, error: _Optional[str] = ...) -> None: ...
