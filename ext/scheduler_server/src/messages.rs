//! The messages of the two calls, as in `rpc/na.proto`; a test compares field by field.
//! Must never have a field that the file lacks.

use prost::Message;

#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct LeaseWorkerReq {
    #[prost(string, tag = "1")]
    pub tenant: String,
    #[prost(string, tag = "2")]
    pub namespace: String,
    #[prost(string, tag = "3")]
    pub funcname: String,
    #[prost(int64, tag = "4")]
    pub fprevision: i64,
    #[prost(int64, tag = "5")]
    pub gateway_id: i64,
    #[prost(string, tag = "6")]
    pub consumer_tenant: String,
    #[prost(string, tag = "16")]
    pub request_id: String,
    #[prost(uint32, tag = "17")]
    pub deadline_ms: u32,
    #[prost(uint32, tag = "18")]
    pub slots: u32,
}

#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct LeaseWorkerResp {
    #[prost(string, tag = "1")]
    pub error: String,
    #[prost(string, tag = "3")]
    pub id: String,
    #[prost(uint32, tag = "4")]
    pub ipaddr: u32,
    #[prost(bool, tag = "5")]
    pub keepalive: bool,
    #[prost(uint32, tag = "6")]
    pub hostipaddr: u32,
    #[prost(uint32, tag = "7")]
    pub hostport: u32,
    #[prost(bool, tag = "8")]
    pub hostnetwork: bool,
    #[prost(string, tag = "16")]
    pub lease_id: String,
    #[prost(int64, tag = "17")]
    pub epoch: i64,
    #[prost(uint32, tag = "18")]
    pub slots: u32,
    #[prost(string, tag = "19")]
    pub start: String,
    #[prost(int64, tag = "20")]
    pub expires_ms: i64,
}

#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct ReturnWorkerReq {
    #[prost(string, tag = "1")]
    pub tenant: String,
    #[prost(string, tag = "2")]
    pub namespace: String,
    #[prost(string, tag = "3")]
    pub funcname: String,
    #[prost(int64, tag = "4")]
    pub fprevision: i64,
    #[prost(string, tag = "5")]
    pub id: String,
    #[prost(bool, tag = "6")]
    pub failworker: bool,
    #[prost(string, tag = "16")]
    pub lease_id: String,
}

#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct ReturnWorkerResp {
    #[prost(string, tag = "1")]
    pub error: String,
}
