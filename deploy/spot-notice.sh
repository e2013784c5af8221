#!/bin/bash
# Waits for the notice that a spot machine of AWS will be taken away, and passes it on to `ray start
# --block`, which then drains the node: spot-notice.sh PID. It ends with that process.
set -u
ray_start=$1
metadata=${METADATA_URL:-http://169.254.169.254/latest}
every_s=${EVERY_S:-5}

announced() {
  local token
  token=$(curl --silent --fail --max-time 2 --request PUT \
    --header "X-aws-ec2-metadata-token-ttl-seconds: 60" "$metadata/api/token") || return 1
  curl --silent --fail --max-time 2 --output /dev/null \
    --header "X-aws-ec2-metadata-token: $token" "$metadata/meta-data/spot/instance-action"
}

while kill -0 "$ray_start" 2> /dev/null; do
  if announced; then
    echo "this machine will be taken away: draining it"
    kill -TERM "$ray_start"
    exit 0
  fi
  sleep "$every_s"
done
