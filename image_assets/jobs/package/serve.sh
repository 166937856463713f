#!/bin/sh
# Serves http://127.0.0.1:8080/invocations; set HOST and PORT to change the address.
cd "$(dirname "$0")" || exit
export MLFLOW_ALLOW_PICKLE_DESERIALIZATION=false GIT_PYTHON_REFRESH=quiet
# A container's first process ignores SIGTERM unless it handles it; this shell does, MLflow does not.
trap 'kill "$server"; wait "$server"' TERM INT
mlflow models serve --model-uri model --env-manager local --host "${HOST:-127.0.0.1}" --port "${PORT:-8080}" &
server=$!
wait "$server"
