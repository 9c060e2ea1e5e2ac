//! Parts of requests; what is wrong with one is said as everything else is.

use axum::Json;
use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;

use super::{BODY_MAX, Error};

/// A JSON body.
pub(super) struct Body<T>(pub T);

impl<S: Send + Sync, T> FromRequest<S> for Body<T>
where
    Json<T>: FromRequest<S, Rejection = JsonRejection>,
{
    type Rejection = Error;

    async fn from_request(request: Request, state: &S) -> Result<Self, Error> {
        match Json::<T>::from_request(request, state).await {
            Ok(Json(value)) => Ok(Self(value)),
            Err(rejection) if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE => {
                let reason = format!("the body is too large: allowed are {BODY_MAX} bytes");
                Err(Error::Invalid(vec![reason]))
            }
            Err(rejection) => Err(Error::Invalid(vec![rejection.body_text()])),
        }
    }
}

/// The names in the path.
pub(super) struct Names<T>(pub T);

impl<S: Send + Sync, T> FromRequestParts<S> for Names<T>
where
    Path<T>: FromRequestParts<S, Rejection = PathRejection>,
{
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        match Path::<T>::from_request_parts(parts, state).await {
            Ok(Path(names)) => Ok(Self(names)),
            Err(rejection) => Err(Error::Invalid(vec![rejection.body_text()])),
        }
    }
}

/// What stands behind the question mark.
pub(super) struct Options<T>(pub T);

impl<S: Send + Sync, T> FromRequestParts<S> for Options<T>
where
    Query<T>: FromRequestParts<S, Rejection = QueryRejection>,
{
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        match Query::<T>::from_request_parts(parts, state).await {
            Ok(Query(options)) => Ok(Self(options)),
            Err(rejection) => Err(Error::Invalid(vec![rejection.body_text()])),
        }
    }
}
