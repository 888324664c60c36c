<?php
echo 'hello from PHP worker ', getenv('LB_WORKER_ID'), ' (pid ', getmypid(), ")\n";
