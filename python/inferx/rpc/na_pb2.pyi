from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class KillPodStatus(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OK: _ClassVar[KillPodStatus]
    NOT_FOUND: _ClassVar[KillPodStatus]
    INVALID_STATE: _ClassVar[KillPodStatus]
    INTERNAL: _ClassVar[KillPodStatus]

class CreatePodType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    Normal: _ClassVar[CreatePodType]
    Snapshot: _ClassVar[CreatePodType]
    Restore: _ClassVar[CreatePodType]
OK: KillPodStatus
NOT_FOUND: KillPodStatus
INVALID_STATE: KillPodStatus
INTERNAL: KillPodStatus
Normal: CreatePodType
Snapshot: CreatePodType
Restore: CreatePodType

class KV(_message.Message):
    __slots__ = ("key", "val")
    KEY_FIELD_NUMBER: _ClassVar[int]
    VAL_FIELD_NUMBER: _ClassVar[int]
    key: str
    val: str
    def __init__(self, key: _Optional[str] = ..., val: _Optional[str] = ...) -> None: ...

class WorkerId(_message.Message):
    __slots__ = ("tenant", "namespace", "funcname", "fprevision", "id", "lease_id", "slots", "epoch")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    FUNCNAME_FIELD_NUMBER: _ClassVar[int]
    FPREVISION_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    namespace: str
    funcname: str
    fprevision: int
    id: str
    lease_id: str
    slots: int
    epoch: int
    def __init__(self, tenant: _Optional[str] = ..., namespace: _Optional[str] = ..., funcname: _Optional[str] = ..., fprevision: _Optional[int] = ..., id: _Optional[str] = ..., lease_id: _Optional[str] = ..., slots: _Optional[int] = ..., epoch: _Optional[int] = ...) -> None: ...

class ConnectReq(_message.Message):
    __slots__ = ("gateway_id", "workers", "replaces")
    GATEWAY_ID_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    REPLACES_FIELD_NUMBER: _ClassVar[int]
    gateway_id: int
    workers: _containers.RepeatedCompositeFieldContainer[WorkerId]
    replaces: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, gateway_id: _Optional[int] = ..., workers: _Optional[_Iterable[_Union[WorkerId, _Mapping]]] = ..., replaces: _Optional[_Iterable[int]] = ...) -> None: ...

class ConnectResp(_message.Message):
    __slots__ = ("error", "rejected_lease_ids", "epoch")
    ERROR_FIELD_NUMBER: _ClassVar[int]
    REJECTED_LEASE_IDS_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    error: str
    rejected_lease_ids: _containers.RepeatedScalarFieldContainer[str]
    epoch: int
    def __init__(self, error: _Optional[str] = ..., rejected_lease_ids: _Optional[_Iterable[str]] = ..., epoch: _Optional[int] = ...) -> None: ...

class LeaseWorkerReq(_message.Message):
    __slots__ = ("tenant", "namespace", "funcname", "fprevision", "gateway_id", "consumer_tenant", "request_id", "deadline_ms", "slots")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    FUNCNAME_FIELD_NUMBER: _ClassVar[int]
    FPREVISION_FIELD_NUMBER: _ClassVar[int]
    GATEWAY_ID_FIELD_NUMBER: _ClassVar[int]
    CONSUMER_TENANT_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_MS_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    namespace: str
    funcname: str
    fprevision: int
    gateway_id: int
    consumer_tenant: str
    request_id: str
    deadline_ms: int
    slots: int
    def __init__(self, tenant: _Optional[str] = ..., namespace: _Optional[str] = ..., funcname: _Optional[str] = ..., fprevision: _Optional[int] = ..., gateway_id: _Optional[int] = ..., consumer_tenant: _Optional[str] = ..., request_id: _Optional[str] = ..., deadline_ms: _Optional[int] = ..., slots: _Optional[int] = ...) -> None: ...

class LeaseWorkerResp(_message.Message):
    __slots__ = ("error", "id", "ipaddr", "keepalive", "hostipaddr", "hostport", "hostnetwork", "lease_id", "epoch", "slots", "start", "expires_ms")
    ERROR_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    IPADDR_FIELD_NUMBER: _ClassVar[int]
    KEEPALIVE_FIELD_NUMBER: _ClassVar[int]
    HOSTIPADDR_FIELD_NUMBER: _ClassVar[int]
    HOSTPORT_FIELD_NUMBER: _ClassVar[int]
    HOSTNETWORK_FIELD_NUMBER: _ClassVar[int]
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_MS_FIELD_NUMBER: _ClassVar[int]
    error: str
    id: str
    ipaddr: int
    keepalive: bool
    hostipaddr: int
    hostport: int
    hostnetwork: bool
    lease_id: str
    epoch: int
    slots: int
    start: str
    expires_ms: int
    def __init__(self, error: _Optional[str] = ..., id: _Optional[str] = ..., ipaddr: _Optional[int] = ..., keepalive: _Optional[bool] = ..., hostipaddr: _Optional[int] = ..., hostport: _Optional[int] = ..., hostnetwork: _Optional[bool] = ..., lease_id: _Optional[str] = ..., epoch: _Optional[int] = ..., slots: _Optional[int] = ..., start: _Optional[str] = ..., expires_ms: _Optional[int] = ...) -> None: ...

class ReturnWorkerReq(_message.Message):
    __slots__ = ("tenant", "namespace", "funcname", "fprevision", "id", "failworker", "lease_id")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    FUNCNAME_FIELD_NUMBER: _ClassVar[int]
    FPREVISION_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    FAILWORKER_FIELD_NUMBER: _ClassVar[int]
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    namespace: str
    funcname: str
    fprevision: int
    id: str
    failworker: bool
    lease_id: str
    def __init__(self, tenant: _Optional[str] = ..., namespace: _Optional[str] = ..., funcname: _Optional[str] = ..., fprevision: _Optional[int] = ..., id: _Optional[str] = ..., failworker: _Optional[bool] = ..., lease_id: _Optional[str] = ...) -> None: ...

class ReturnWorkerResp(_message.Message):
    __slots__ = ("error",)
    ERROR_FIELD_NUMBER: _ClassVar[int]
    error: str
    def __init__(self, error: _Optional[str] = ...) -> None: ...

class RefreshGatewayReq(_message.Message):
    __slots__ = ("gateway_id", "lease_ids", "slots")
    GATEWAY_ID_FIELD_NUMBER: _ClassVar[int]
    LEASE_IDS_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    gateway_id: int
    lease_ids: _containers.RepeatedScalarFieldContainer[str]
    slots: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, gateway_id: _Optional[int] = ..., lease_ids: _Optional[_Iterable[str]] = ..., slots: _Optional[_Iterable[int]] = ...) -> None: ...

class RefreshGatewayResp(_message.Message):
    __slots__ = ("error", "ended_lease_ids", "shares")
    ERROR_FIELD_NUMBER: _ClassVar[int]
    ENDED_LEASE_IDS_FIELD_NUMBER: _ClassVar[int]
    SHARES_FIELD_NUMBER: _ClassVar[int]
    error: str
    ended_lease_ids: _containers.RepeatedScalarFieldContainer[str]
    shares: _containers.RepeatedCompositeFieldContainer[LeaseShare]
    def __init__(self, error: _Optional[str] = ..., ended_lease_ids: _Optional[_Iterable[str]] = ..., shares: _Optional[_Iterable[_Union[LeaseShare, _Mapping]]] = ...) -> None: ...

class LeaseShare(_message.Message):
    __slots__ = ("lease_id", "slots")
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    lease_id: str
    slots: int
    def __init__(self, lease_id: _Optional[str] = ..., slots: _Optional[int] = ...) -> None: ...

class ExplainWaitReq(_message.Message):
    __slots__ = ("gateway_id", "functions")
    GATEWAY_ID_FIELD_NUMBER: _ClassVar[int]
    FUNCTIONS_FIELD_NUMBER: _ClassVar[int]
    gateway_id: int
    functions: _containers.RepeatedCompositeFieldContainer[FunctionName]
    def __init__(self, gateway_id: _Optional[int] = ..., functions: _Optional[_Iterable[_Union[FunctionName, _Mapping]]] = ...) -> None: ...

class ExplainWaitResp(_message.Message):
    __slots__ = ("error", "reasons")
    ERROR_FIELD_NUMBER: _ClassVar[int]
    REASONS_FIELD_NUMBER: _ClassVar[int]
    error: str
    reasons: _containers.RepeatedCompositeFieldContainer[WaitReason]
    def __init__(self, error: _Optional[str] = ..., reasons: _Optional[_Iterable[_Union[WaitReason, _Mapping]]] = ...) -> None: ...

class FunctionName(_message.Message):
    __slots__ = ("tenant", "namespace", "funcname")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    FUNCNAME_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    namespace: str
    funcname: str
    def __init__(self, tenant: _Optional[str] = ..., namespace: _Optional[str] = ..., funcname: _Optional[str] = ...) -> None: ...

class WaitReason(_message.Message):
    __slots__ = ("function", "reason")
    FUNCTION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    function: FunctionName
    reason: str
    def __init__(self, function: _Optional[_Union[FunctionName, _Mapping]] = ..., reason: _Optional[str] = ...) -> None: ...

class KillPodReq(_message.Message):
    __slots__ = ("tenant", "namespace", "funcname", "fprevision", "id")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    FUNCNAME_FIELD_NUMBER: _ClassVar[int]
    FPREVISION_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    namespace: str
    funcname: str
    fprevision: int
    id: str
    def __init__(self, tenant: _Optional[str] = ..., namespace: _Optional[str] = ..., funcname: _Optional[str] = ..., fprevision: _Optional[int] = ..., id: _Optional[str] = ...) -> None: ...

class KillPodResp(_message.Message):
    __slots__ = ("error", "status")
    ERROR_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    error: str
    status: KillPodStatus
    def __init__(self, error: _Optional[str] = ..., status: _Optional[_Union[KillPodStatus, str]] = ...) -> None: ...

class TerminatePodReq(_message.Message):
    __slots__ = ("tenant", "namespace", "funcname", "fprevision", "id", "epoch")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    FUNCNAME_FIELD_NUMBER: _ClassVar[int]
    FPREVISION_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    namespace: str
    funcname: str
    fprevision: int
    id: str
    epoch: int
    def __init__(self, tenant: _Optional[str] = ..., namespace: _Optional[str] = ..., funcname: _Optional[str] = ..., fprevision: _Optional[int] = ..., id: _Optional[str] = ..., epoch: _Optional[int] = ...) -> None: ...

class TerminatePodResp(_message.Message):
    __slots__ = ("error",)
    ERROR_FIELD_NUMBER: _ClassVar[int]
    error: str
    def __init__(self, error: _Optional[str] = ...) -> None: ...

class ParkPodReq(_message.Message):
    __slots__ = ("tenant", "namespace", "funcname", "fprevision", "id", "epoch")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    FUNCNAME_FIELD_NUMBER: _ClassVar[int]
    FPREVISION_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    namespace: str
    funcname: str
    fprevision: int
    id: str
    epoch: int
    def __init__(self, tenant: _Optional[str] = ..., namespace: _Optional[str] = ..., funcname: _Optional[str] = ..., fprevision: _Optional[int] = ..., id: _Optional[str] = ..., epoch: _Optional[int] = ...) -> None: ...

class ParkPodResp(_message.Message):
    __slots__ = ("error",)
    ERROR_FIELD_NUMBER: _ClassVar[int]
    error: str
    def __init__(self, error: _Optional[str] = ...) -> None: ...

class CreateFuncPodReq(_message.Message):
    __slots__ = ("tenant", "namespace", "funcname", "fprevision", "id", "labels", "annotations", "create_type", "funcspec", "alloc_resources", "resource_quota", "terminate_pods", "epoch", "park_pods", "save_snapshot")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    FUNCNAME_FIELD_NUMBER: _ClassVar[int]
    FPREVISION_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    ANNOTATIONS_FIELD_NUMBER: _ClassVar[int]
    CREATE_TYPE_FIELD_NUMBER: _ClassVar[int]
    FUNCSPEC_FIELD_NUMBER: _ClassVar[int]
    ALLOC_RESOURCES_FIELD_NUMBER: _ClassVar[int]
    RESOURCE_QUOTA_FIELD_NUMBER: _ClassVar[int]
    TERMINATE_PODS_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    PARK_PODS_FIELD_NUMBER: _ClassVar[int]
    SAVE_SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    namespace: str
    funcname: str
    fprevision: int
    id: str
    labels: _containers.RepeatedCompositeFieldContainer[KV]
    annotations: _containers.RepeatedCompositeFieldContainer[KV]
    create_type: CreatePodType
    funcspec: str
    alloc_resources: str
    resource_quota: str
    terminate_pods: _containers.RepeatedCompositeFieldContainer[TerminatePodReq]
    epoch: int
    park_pods: _containers.RepeatedCompositeFieldContainer[ParkPodReq]
    save_snapshot: bool
    def __init__(self, tenant: _Optional[str] = ..., namespace: _Optional[str] = ..., funcname: _Optional[str] = ..., fprevision: _Optional[int] = ..., id: _Optional[str] = ..., labels: _Optional[_Iterable[_Union[KV, _Mapping]]] = ..., annotations: _Optional[_Iterable[_Union[KV, _Mapping]]] = ..., create_type: _Optional[_Union[CreatePodType, str]] = ..., funcspec: _Optional[str] = ..., alloc_resources: _Optional[str] = ..., resource_quota: _Optional[str] = ..., terminate_pods: _Optional[_Iterable[_Union[TerminatePodReq, _Mapping]]] = ..., epoch: _Optional[int] = ..., park_pods: _Optional[_Iterable[_Union[ParkPodReq, _Mapping]]] = ..., save_snapshot: _Optional[bool] = ...) -> None: ...

class CreateFuncPodResp(_message.Message):
    __slots__ = ("error", "ipaddress", "port", "start")
    ERROR_FIELD_NUMBER: _ClassVar[int]
    IPADDRESS_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    error: str
    ipaddress: int
    port: int
    start: str
    def __init__(self, error: _Optional[str] = ..., ipaddress: _Optional[int] = ..., port: _Optional[int] = ..., start: _Optional[str] = ...) -> None: ...

class ResumePodReq(_message.Message):
    __slots__ = ("tenant", "namespace", "funcname", "fprevision", "id", "alloc_resources", "terminate_pods", "epoch", "park_pods")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    FUNCNAME_FIELD_NUMBER: _ClassVar[int]
    FPREVISION_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    ALLOC_RESOURCES_FIELD_NUMBER: _ClassVar[int]
    TERMINATE_PODS_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    PARK_PODS_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    namespace: str
    funcname: str
    fprevision: int
    id: str
    alloc_resources: str
    terminate_pods: _containers.RepeatedCompositeFieldContainer[TerminatePodReq]
    epoch: int
    park_pods: _containers.RepeatedCompositeFieldContainer[ParkPodReq]
    def __init__(self, tenant: _Optional[str] = ..., namespace: _Optional[str] = ..., funcname: _Optional[str] = ..., fprevision: _Optional[int] = ..., id: _Optional[str] = ..., alloc_resources: _Optional[str] = ..., terminate_pods: _Optional[_Iterable[_Union[TerminatePodReq, _Mapping]]] = ..., epoch: _Optional[int] = ..., park_pods: _Optional[_Iterable[_Union[ParkPodReq, _Mapping]]] = ...) -> None: ...

class ResumePodResp(_message.Message):
    __slots__ = ("error", "ipaddress", "port", "start")
    ERROR_FIELD_NUMBER: _ClassVar[int]
    IPADDRESS_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    error: str
    ipaddress: int
    port: int
    start: str
    def __init__(self, error: _Optional[str] = ..., ipaddress: _Optional[int] = ..., port: _Optional[int] = ..., start: _Optional[str] = ...) -> None: ...

class ReadPodLogReq(_message.Message):
    __slots__ = ("tenant", "namespace", "funcname", "fprevision", "id", "tail", "follow")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    FUNCNAME_FIELD_NUMBER: _ClassVar[int]
    FPREVISION_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    TAIL_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    namespace: str
    funcname: str
    fprevision: int
    id: str
    tail: int
    follow: bool
    def __init__(self, tenant: _Optional[str] = ..., namespace: _Optional[str] = ..., funcname: _Optional[str] = ..., fprevision: _Optional[int] = ..., id: _Optional[str] = ..., tail: _Optional[int] = ..., follow: _Optional[bool] = ...) -> None: ...

class ReadPodLogResp(_message.Message):
    __slots__ = ("error", "log")
    ERROR_FIELD_NUMBER: _ClassVar[int]
    LOG_FIELD_NUMBER: _ClassVar[int]
    error: str
    log: str
    def __init__(self, error: _Optional[str] = ..., log: _Optional[str] = ...) -> None: ...

class RemoveSnapshotReq(_message.Message):
    __slots__ = ("funckey",)
    FUNCKEY_FIELD_NUMBER: _ClassVar[int]
    funckey: str
    def __init__(self, funckey: _Optional[str] = ...) -> None: ...

class RemoveSnapshotResp(_message.Message):
    __slots__ = ("error",)
    ERROR_FIELD_NUMBER: _ClassVar[int]
    error: str
    def __init__(self, error: _Optional[str] = ...) -> None: ...
