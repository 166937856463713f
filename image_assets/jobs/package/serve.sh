#!/bin/sh
# Serves http://127.0.0.1:8080/invocations; set HOST and PORT to change the address.
cd "$(dirname "$0")" || exit
export MLFLOW_ALLOW_PICKLE_DESERIALIZATION=false GIT_PYTHON_REFRESH=quiet
exec mlflow models serve --model-uri model --env-manager local --host "${HOST:-127.0.0.1}" --port "${PORT:-8080}"
