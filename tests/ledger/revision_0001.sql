BEGIN TRANSACTION;
CREATE TABLE beats (
	job VARCHAR NOT NULL, 
	heartbeat DOUBLE NOT NULL, 
	progress TEXT NOT NULL, 
	PRIMARY KEY (job)
);
INSERT INTO "beats" VALUES('329fa40beab44f0aa78a761badca826e',144.0,'{"done":0.5}');
INSERT INTO "beats" VALUES('7151072bb4b4417bba6ce2873882d890',144.0,'{"done":0.5}');
CREATE TABLE checkpoints (
	model VARCHAR NOT NULL, 
	member BIGINT NOT NULL, 
	epoch BIGINT NOT NULL, 
	project VARCHAR NOT NULL, 
	round BIGINT NOT NULL, 
	file VARCHAR NOT NULL, 
	final BOOLEAN NOT NULL, 
	committed DOUBLE NOT NULL, 
	PRIMARY KEY (model, member, epoch), 
	FOREIGN KEY(project, round) REFERENCES rounds (project, round)
);
INSERT INTO "checkpoints" VALUES('p',0,2,'p',0,'final',1,1.79599069726822304724e+09);
INSERT INTO "checkpoints" VALUES('q',0,1,'q',0,'q1',0,1.79599069718684577938e+09);
INSERT INTO "checkpoints" VALUES('q',0,2,'q',0,'q2',0,1.79599069719070267674e+09);
CREATE TABLE column_parts (
	columns VARCHAR NOT NULL, 
	part VARCHAR NOT NULL, 
	project VARCHAR NOT NULL, 
	round BIGINT NOT NULL, 
	file VARCHAR NOT NULL, 
	rows BIGINT NOT NULL, 
	key_sum BIGINT NOT NULL, 
	committed DOUBLE NOT NULL, 
	PRIMARY KEY (columns, part), 
	FOREIGN KEY(project, round) REFERENCES rounds (project, round)
);
INSERT INTO "column_parts" VALUES('p','part1','p',0,'cp',3,-9223372036854775808,1.79599069705057716372e+09);
CREATE TABLE events (
	seq INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	time DOUBLE NOT NULL, 
	project VARCHAR, 
	kind VARCHAR NOT NULL, 
	payload TEXT NOT NULL
);
INSERT INTO "events" VALUES(1,1.79599069703746724128e+09,NULL,'snapshot','[["insert","snapshots",{"pool":"digits","number":1,"info":{"classes":["\u00e4","b"],"ratio":1.0},"created":1795990697.0374672}],["insert","parts",{"pool":"digits","number":1,"position":0,"part":"part1","file":"pools/1","role":"pool","rows":3,"key_sum":18446744073709551615,"bytes":10}]]');
INSERT INTO "events" VALUES(2,1.79599069704088282585e+09,NULL,'snapshot','[["insert","snapshots",{"pool":"digits","number":2,"info":{"classes":["\u00e4","b"],"ratio":1.0},"created":1795990697.0408828}],["insert","parts",{"pool":"digits","number":2,"position":1,"part":"part2","file":"pools/2","role":"pool","rows":3,"key_sum":18446744073709551614,"bytes":10}]]');
INSERT INTO "events" VALUES(3,1.7959906970423755646e+09,'p','project','[["insert","projects",{"project":"p","pool":"digits","settings":{"labeling":{"labels_per_item":2},"lr":0.001},"created":1795990697.0423756,"version":1,"deleted":null}]]');
INSERT INTO "events" VALUES(4,1.79599069704376387594e+09,'p','round','[["insert","rounds",{"project":"p","round":0,"snapshot":2,"labels_seq":0,"seeds":{"model":1},"begun":1795990697.0437639}]]');
INSERT INTO "events" VALUES(5,1.79599069704770898823e+09,'p','checkpoint','[["insert","checkpoints",{"model":"p","member":0,"epoch":1,"project":"p","round":0,"file":"p1","final":false,"committed":1795990697.047709}]]');
INSERT INTO "events" VALUES(6,1.79599069704959177964e+09,'p','checkpoint','[["insert","checkpoints",{"model":"p","member":0,"epoch":2,"project":"p","round":0,"file":"p2","final":false,"committed":1795990697.0495918}]]');
INSERT INTO "events" VALUES(7,1.79599069705057716372e+09,'p','columns','[["insert","column_parts",{"columns":"p","part":"part1","file":"cp","rows":3,"key_sum":9223372036854775808,"project":"p","round":0,"committed":1795990697.0505772}]]');
INSERT INTO "events" VALUES(8,1.79599069705221891408e+09,'p','stage','[["insert","stages",{"project":"p","round":0,"stage":"train","output":{"loss":0.1},"seconds":0.3333333333333333,"finished":1795990697.052219}]]');
INSERT INTO "events" VALUES(9,1.79599069705376434323e+09,'p','label','[["insert","items",{"project":"p","item":"b","round":null,"rank":null,"score":null,"need":2,"accepted":1,"conflict":false,"skipped":false,"forgotten":false,"open":false}],["insert","labels",{"project":"p","seq":1,"item":"b","annotator":"import","late":false,"lease":null,"provenance":{},"value":"early","status":"accepted","slot":1,"reason":null,"resolution":1,"superseded_by":null,"time":1795990697.0537643}]]');
INSERT INTO "events" VALUES(10,1.7959906970569779873e+09,'p','selection','[["insert","selections",{"project":"p","round":0,"provenance":{"seed":1180591620717411303424},"committed":1795990697.056978}],["insert","picks",{"project":"p","round":0,"item":"a","key":9223372036854775808,"rank":0,"score":0.3333333333333333,"probability":null,"picked":true}],["insert","picks",{"project":"p","round":0,"item":"b","key":9223372036854775809,"rank":1,"score":0.25,"probability":null,"picked":true},{"project":"p","round":0,"item":"c","key":9223372036854775810,"rank":2,"score":null,"probability":null,"picked":true},{"project":"p","round":0,"item":"z","key":1,"rank":0,"score":null,"probability":1e-300,"picked":false}],["insert","items",{"project":"p","item":"a","round":0,"rank":0,"score":0.3333333333333333,"need":2,"accepted":0,"conflict":false,"skipped":false,"forgotten":false,"open":true},{"project":"p","item":"c","round":0,"rank":2,"score":null,"need":2,"accepted":0,"conflict":false,"skipped":false,"forgotten":false,"open":true}],["update","items",{"project":"p","item":"b","round":0,"rank":1,"score":0.25,"need":2,"accepted":1,"conflict":false,"skipped":false,"forgotten":false,"open":true}],["insert","stages",{"project":"p","round":0,"stage":"select","output":{},"seconds":2.0,"finished":1795990697.056978}]]');
INSERT INTO "events" VALUES(11,100.0,'p','lease','[["insert","leases",{"lease":"176af12e0c3342e8808a82ecf47030fd","project":"p","item":"a","annotator":"ann","state":"active","granted":100.0,"expires":110.0},{"lease":"1de8f7d09fe249b0887d55fe20371c5e","project":"p","item":"b","annotator":"ann","state":"active","granted":100.0,"expires":110.0}]]');
INSERT INTO "events" VALUES(12,105.0,'p','lease','[["insert","leases",{"lease":"3c30326092f644daa719329e91d8d8a4","project":"p","item":"a","annotator":"bob","state":"active","granted":105.0,"expires":115.0}]]');
INSERT INTO "events" VALUES(13,130.0,'p','extend','[["update","leases",{"lease":"176af12e0c3342e8808a82ecf47030fd","state":"expired"},{"lease":"1de8f7d09fe249b0887d55fe20371c5e","state":"expired"},{"lease":"3c30326092f644daa719329e91d8d8a4","state":"expired"}],["update","leases",{"lease":"3c30326092f644daa719329e91d8d8a4","state":"active","expires":135.0}]]');
INSERT INTO "events" VALUES(14,131.0,'p','label','[["insert","labels",{"project":"p","seq":2,"item":"a","annotator":"bob","late":false,"lease":"3c30326092f644daa719329e91d8d8a4","provenance":{},"value":1.0,"status":"accepted","slot":1,"reason":null,"resolution":2,"superseded_by":null,"time":131.0}],["update","items",{"project":"p","item":"a","round":0,"rank":0,"score":0.3333333333333333,"need":2,"accepted":1,"conflict":false,"skipped":false,"forgotten":false,"open":true}],["update","leases",{"lease":"3c30326092f644daa719329e91d8d8a4","state":"labeled"}]]');
INSERT INTO "events" VALUES(15,132.0,'p','label','[["insert","labels",{"project":"p","seq":3,"item":"a","annotator":"bob","late":false,"lease":"3c30326092f644daa719329e91d8d8a4","provenance":{},"value":1,"status":"updated","slot":1,"reason":null,"resolution":3,"superseded_by":null,"time":132.0}],["update","labels",{"project":"p","seq":2,"superseded_by":3}]]');
INSERT INTO "events" VALUES(16,1.79599069707590484621e+09,'p','lease','[["insert","leases",{"lease":"2e219e3366474581bc80f66b8fdbe0a1","project":"p","item":"a","annotator":"cat","state":"active","granted":1795990697.0759048,"expires":1795991597.0759048}]]');
INSERT INTO "events" VALUES(17,1.79599069707671546935e+09,'p','give_back','[["update","leases",{"lease":"2e219e3366474581bc80f66b8fdbe0a1","state":"returned"}]]');
INSERT INTO "events" VALUES(18,140.0,'p','label','[["insert","labels",{"project":"p","seq":4,"item":"c","annotator":"bob","late":false,"lease":null,"provenance":{},"value":null,"status":"skipped","slot":null,"reason":null,"resolution":null,"superseded_by":null,"time":140.0}]]');
INSERT INTO "events" VALUES(19,141.0,'p','retract','[["insert","labels",{"project":"p","seq":5,"item":"a","annotator":"bob","value":null,"slot":null,"status":"retracted","late":false,"lease":null,"reason":null,"provenance":{},"resolution":null,"superseded_by":null,"time":141.0}],["update","labels",{"project":"p","seq":3,"superseded_by":5}],["update","items",{"project":"p","item":"a","round":0,"rank":0,"score":0.3333333333333333,"need":2,"accepted":0,"conflict":false,"skipped":false,"forgotten":false,"open":true}]]');
INSERT INTO "events" VALUES(20,142.0,'p','job','[["insert","jobs",{"job":"329fa40beab44f0aa78a761badca826e","number":1,"project":"p","kind":"round","args":{"n":0},"state":"queued","result":null,"error":null,"attempts":0,"created":142.0,"started":null,"finished":null,"owner":null}]]');
INSERT INTO "events" VALUES(21,143.0,'p','claim','[["update","jobs",{"job":"329fa40beab44f0aa78a761badca826e","state":"running","owner":"runner","attempts":1,"started":143.0,"finished":null,"error":null,"result":null}]]');
INSERT INTO "events" VALUES(22,145.0,'p','job','[["update","jobs",{"job":"329fa40beab44f0aa78a761badca826e","state":"done","result":{"picks":1.0},"finished":145.0}]]');
INSERT INTO "events" VALUES(23,146.0,'p','model','[["insert","models",{"project":"p","version":"r0000-abcd","round":0,"model":"abcd","info":{"accuracy":0.5},"created":146.0,"active":false}],["update","models",{"project":"p","version":"r0000-abcd","active":true}]]');
INSERT INTO "events" VALUES(24,147.0,'p','suggestions','[["insert","suggestions",{"project":"p","version":"r0000-abcd","item":"a","label":"x","probs":[0.5,0.5]}]]');
INSERT INTO "events" VALUES(25,148.0,'p','model','[["insert","models",{"project":"p","version":"r0001-bcde","round":1,"model":"bcde","info":{},"created":148.0,"active":false}],["update","models",{"project":"p","version":"r0000-abcd","active":false},{"project":"p","version":"r0001-bcde","active":true}]]');
INSERT INTO "events" VALUES(26,149.0,'p','activate','[["update","models",{"project":"p","version":"r0000-abcd","active":true},{"project":"p","version":"r0001-bcde","active":false}]]');
INSERT INTO "events" VALUES(27,150.0,'p','project','[["update","projects",{"project":"p","settings":{"labeling":{"labels_per_item":2,"max_skips":1}},"version":2}],["update","items",{"project":"p","item":"c","round":0,"rank":2,"score":null,"need":2,"accepted":0,"conflict":false,"skipped":true,"forgotten":false,"open":false}]]');
INSERT INTO "events" VALUES(28,151.0,'p','forget_item','[["update","items",{"project":"p","item":"c","round":0,"rank":2,"score":0.2,"need":2,"accepted":0,"conflict":false,"skipped":true,"forgotten":true,"open":false}],["update","items",{"project":"p","item":"c","score":null}],["update","labels",{"project":"p","seq":4,"value":null,"reason":null,"provenance":{}}],["update","picks",{"project":"p","round":0,"item":"c","score":null,"probability":null}]]');
INSERT INTO "events" VALUES(29,1.7959906971708421707e+09,'q','project','[["insert","projects",{"project":"q","pool":"digits","settings":{"labeling":{"labels_per_item":2},"lr":0.001},"created":1795990697.1708422,"version":1,"deleted":null}]]');
INSERT INTO "events" VALUES(30,1.79599069717881464959e+09,'q','round','[["insert","rounds",{"project":"q","round":0,"snapshot":2,"labels_seq":0,"seeds":{"model":1},"begun":1795990697.1788146}]]');
INSERT INTO "events" VALUES(31,1.79599069718684577938e+09,'q','checkpoint','[["insert","checkpoints",{"model":"q","member":0,"epoch":1,"project":"q","round":0,"file":"q1","final":false,"committed":1795990697.1868458}]]');
INSERT INTO "events" VALUES(32,1.79599069719070267674e+09,'q','checkpoint','[["insert","checkpoints",{"model":"q","member":0,"epoch":2,"project":"q","round":0,"file":"q2","final":false,"committed":1795990697.1907027}]]');
INSERT INTO "events" VALUES(33,1.79599069719470953937e+09,'q','columns','[["insert","column_parts",{"columns":"q","part":"part1","file":"cq","rows":3,"key_sum":9223372036854775808,"project":"q","round":0,"committed":1795990697.1947095}]]');
INSERT INTO "events" VALUES(34,1.79599069719886898994e+09,'q','stage','[["insert","stages",{"project":"q","round":0,"stage":"train","output":{"loss":0.1},"seconds":0.3333333333333333,"finished":1795990697.198869}]]');
INSERT INTO "events" VALUES(35,1795990697.20267,'q','label','[["insert","items",{"project":"q","item":"b","round":null,"rank":null,"score":null,"need":2,"accepted":1,"conflict":false,"skipped":false,"forgotten":false,"open":false}],["insert","labels",{"project":"q","seq":1,"item":"b","annotator":"import","late":false,"lease":null,"provenance":{},"value":"early","status":"accepted","slot":1,"reason":null,"resolution":1,"superseded_by":null,"time":1795990697.20267}]]');
INSERT INTO "events" VALUES(36,1.79599069720421028136e+09,'q','selection','[["insert","selections",{"project":"q","round":0,"provenance":{"seed":1180591620717411303424},"committed":1795990697.2042103}],["insert","picks",{"project":"q","round":0,"item":"a","key":9223372036854775808,"rank":0,"score":0.3333333333333333,"probability":null,"picked":true}],["insert","picks",{"project":"q","round":0,"item":"b","key":9223372036854775809,"rank":1,"score":0.25,"probability":null,"picked":true},{"project":"q","round":0,"item":"c","key":9223372036854775810,"rank":2,"score":null,"probability":null,"picked":true},{"project":"q","round":0,"item":"z","key":1,"rank":0,"score":null,"probability":1e-300,"picked":false}],["insert","items",{"project":"q","item":"a","round":0,"rank":0,"score":0.3333333333333333,"need":2,"accepted":0,"conflict":false,"skipped":false,"forgotten":false,"open":true},{"project":"q","item":"c","round":0,"rank":2,"score":null,"need":2,"accepted":0,"conflict":false,"skipped":false,"forgotten":false,"open":true}],["update","items",{"project":"q","item":"b","round":0,"rank":1,"score":0.25,"need":2,"accepted":1,"conflict":false,"skipped":false,"forgotten":false,"open":true}],["insert","stages",{"project":"q","round":0,"stage":"select","output":{},"seconds":2.0,"finished":1795990697.2042103}]]');
INSERT INTO "events" VALUES(37,100.0,'q','lease','[["insert","leases",{"lease":"f405b22dc0944430b2fddfc35dd32575","project":"q","item":"a","annotator":"ann","state":"active","granted":100.0,"expires":110.0},{"lease":"7d31e321621c417c903d294e8d70c2cd","project":"q","item":"b","annotator":"ann","state":"active","granted":100.0,"expires":110.0}]]');
INSERT INTO "events" VALUES(38,105.0,'q','lease','[["insert","leases",{"lease":"fa9a2b8559ee4c77a6ac1969aceb47a1","project":"q","item":"a","annotator":"bob","state":"active","granted":105.0,"expires":115.0}]]');
INSERT INTO "events" VALUES(39,130.0,'q','extend','[["update","leases",{"lease":"7d31e321621c417c903d294e8d70c2cd","state":"expired"},{"lease":"f405b22dc0944430b2fddfc35dd32575","state":"expired"},{"lease":"fa9a2b8559ee4c77a6ac1969aceb47a1","state":"expired"}],["update","leases",{"lease":"fa9a2b8559ee4c77a6ac1969aceb47a1","state":"active","expires":135.0}]]');
INSERT INTO "events" VALUES(40,131.0,'q','label','[["insert","labels",{"project":"q","seq":2,"item":"a","annotator":"bob","late":false,"lease":"fa9a2b8559ee4c77a6ac1969aceb47a1","provenance":{},"value":1.0,"status":"accepted","slot":1,"reason":null,"resolution":2,"superseded_by":null,"time":131.0}],["update","items",{"project":"q","item":"a","round":0,"rank":0,"score":0.3333333333333333,"need":2,"accepted":1,"conflict":false,"skipped":false,"forgotten":false,"open":true}],["update","leases",{"lease":"fa9a2b8559ee4c77a6ac1969aceb47a1","state":"labeled"}]]');
INSERT INTO "events" VALUES(41,132.0,'q','label','[["insert","labels",{"project":"q","seq":3,"item":"a","annotator":"bob","late":false,"lease":"fa9a2b8559ee4c77a6ac1969aceb47a1","provenance":{},"value":1,"status":"updated","slot":1,"reason":null,"resolution":3,"superseded_by":null,"time":132.0}],["update","labels",{"project":"q","seq":2,"superseded_by":3}]]');
INSERT INTO "events" VALUES(42,1.79599069723147583012e+09,'q','lease','[["insert","leases",{"lease":"957748668385417486552e65e59842bb","project":"q","item":"a","annotator":"cat","state":"active","granted":1795990697.2314758,"expires":1795991597.2314758}]]');
INSERT INTO "events" VALUES(43,1.79599069723245573044e+09,'q','give_back','[["update","leases",{"lease":"957748668385417486552e65e59842bb","state":"returned"}]]');
INSERT INTO "events" VALUES(44,140.0,'q','label','[["insert","labels",{"project":"q","seq":4,"item":"c","annotator":"bob","late":false,"lease":null,"provenance":{},"value":null,"status":"skipped","slot":null,"reason":null,"resolution":null,"superseded_by":null,"time":140.0}]]');
INSERT INTO "events" VALUES(45,141.0,'q','retract','[["insert","labels",{"project":"q","seq":5,"item":"a","annotator":"bob","value":null,"slot":null,"status":"retracted","late":false,"lease":null,"reason":null,"provenance":{},"resolution":null,"superseded_by":null,"time":141.0}],["update","labels",{"project":"q","seq":3,"superseded_by":5}],["update","items",{"project":"q","item":"a","round":0,"rank":0,"score":0.3333333333333333,"need":2,"accepted":0,"conflict":false,"skipped":false,"forgotten":false,"open":true}]]');
INSERT INTO "events" VALUES(46,142.0,'q','job','[["insert","jobs",{"job":"7151072bb4b4417bba6ce2873882d890","number":2,"project":"q","kind":"round","args":{"n":0},"state":"queued","result":null,"error":null,"attempts":0,"created":142.0,"started":null,"finished":null,"owner":null}]]');
INSERT INTO "events" VALUES(47,143.0,'q','claim','[["update","jobs",{"job":"7151072bb4b4417bba6ce2873882d890","state":"running","owner":"runner","attempts":1,"started":143.0,"finished":null,"error":null,"result":null}]]');
INSERT INTO "events" VALUES(48,145.0,'q','job','[["update","jobs",{"job":"7151072bb4b4417bba6ce2873882d890","state":"done","result":{"picks":1.0},"finished":145.0}]]');
INSERT INTO "events" VALUES(49,146.0,'q','model','[["insert","models",{"project":"q","version":"r0000-abcd","round":0,"model":"abcd","info":{"accuracy":0.5},"created":146.0,"active":false}],["update","models",{"project":"q","version":"r0000-abcd","active":true}]]');
INSERT INTO "events" VALUES(50,147.0,'q','suggestions','[["insert","suggestions",{"project":"q","version":"r0000-abcd","item":"a","label":"x","probs":[0.5,0.5]}]]');
INSERT INTO "events" VALUES(51,148.0,'q','model','[["insert","models",{"project":"q","version":"r0001-bcde","round":1,"model":"bcde","info":{},"created":148.0,"active":false}],["update","models",{"project":"q","version":"r0000-abcd","active":false},{"project":"q","version":"r0001-bcde","active":true}]]');
INSERT INTO "events" VALUES(52,149.0,'q','activate','[["update","models",{"project":"q","version":"r0000-abcd","active":true},{"project":"q","version":"r0001-bcde","active":false}]]');
INSERT INTO "events" VALUES(53,150.0,'q','project','[["update","projects",{"project":"q","settings":{"labeling":{"labels_per_item":2,"max_skips":1}},"version":2}],["update","items",{"project":"q","item":"c","round":0,"rank":2,"score":null,"need":2,"accepted":0,"conflict":false,"skipped":true,"forgotten":false,"open":false}]]');
INSERT INTO "events" VALUES(54,151.0,'q','forget_item','[["update","items",{"project":"q","item":"c","round":0,"rank":2,"score":0.2,"need":2,"accepted":0,"conflict":false,"skipped":true,"forgotten":true,"open":false}],["update","items",{"project":"q","item":"c","score":null}],["update","labels",{"project":"q","seq":4,"value":null,"reason":null,"provenance":{}}],["update","picks",{"project":"q","round":0,"item":"c","score":null,"probability":null}]]');
INSERT INTO "events" VALUES(55,160.0,NULL,'token','[["insert","tokens",{"token_id":"06636cea6d1c","name":"ann''s","scopes":["project:p:label"],"hash":"0000000000000000000000000000000000000000000000000000000000000000","created":160.0,"expires":1000000000.0,"revoked":null}]]');
INSERT INTO "events" VALUES(56,161.0,NULL,'token','[["update","tokens",{"token_id":"06636cea6d1c","revoked":161.0}]]');
INSERT INTO "events" VALUES(57,162.0,'q','delete','[["update","projects",{"project":"q","deleted":162.0}]]');
INSERT INTO "events" VALUES(58,1.79599069726822304724e+09,'p','checkpoint','[["update","checkpoints",{"model":"p","member":0,"epoch":2,"project":"p","round":0,"file":"final","final":true,"committed":1795990697.268223}]]');
INSERT INTO "events" VALUES(59,1.79599069727018165586e+09,NULL,'forget','[["delete","checkpoints",{"model":"p","member":0,"epoch":1}],["delete","column_parts",{"columns":"q","part":"part1"}]]');
CREATE TABLE idempotency (
	scope VARCHAR NOT NULL, 
	"key" VARCHAR NOT NULL, 
	fingerprint VARCHAR NOT NULL, 
	status BIGINT NOT NULL, 
	body BLOB NOT NULL, 
	headers TEXT NOT NULL, 
	created DOUBLE NOT NULL, 
	PRIMARY KEY (scope, "key")
);
INSERT INTO "idempotency" VALUES('ann','key','request',204,X'','{}',162.0);
CREATE TABLE items (
	project VARCHAR NOT NULL, 
	item VARCHAR NOT NULL, 
	round BIGINT, 
	rank BIGINT, 
	score DOUBLE, 
	need BIGINT NOT NULL, 
	accepted BIGINT NOT NULL, 
	"conflict" BOOLEAN NOT NULL, 
	skipped BOOLEAN NOT NULL, 
	forgotten BOOLEAN NOT NULL, 
	open BOOLEAN NOT NULL, 
	PRIMARY KEY (project, item), 
	FOREIGN KEY(project) REFERENCES projects (project)
);
INSERT INTO "items" VALUES('p','b',0,1,0.25,2,1,0,0,0,1);
INSERT INTO "items" VALUES('p','a',0,0,3.33333333333333314829e-01,2,0,0,0,0,1);
INSERT INTO "items" VALUES('p','c',0,2,NULL,2,0,0,1,1,0);
INSERT INTO "items" VALUES('q','b',0,1,0.25,2,1,0,0,0,1);
INSERT INTO "items" VALUES('q','a',0,0,3.33333333333333314829e-01,2,0,0,0,0,1);
INSERT INTO "items" VALUES('q','c',0,2,NULL,2,0,0,1,1,0);
CREATE TABLE jobs (
	job VARCHAR NOT NULL, 
	number BIGINT NOT NULL, 
	project VARCHAR NOT NULL, 
	kind VARCHAR NOT NULL, 
	args TEXT NOT NULL, 
	state VARCHAR NOT NULL, 
	result TEXT NOT NULL, 
	error VARCHAR, 
	attempts BIGINT NOT NULL, 
	created DOUBLE NOT NULL, 
	started DOUBLE, 
	finished DOUBLE, 
	owner VARCHAR, 
	PRIMARY KEY (job), 
	FOREIGN KEY(project) REFERENCES projects (project), 
	UNIQUE (number)
);
INSERT INTO "jobs" VALUES('329fa40beab44f0aa78a761badca826e',1,'p','round','{"n":0}','done','{"picks":1.0}',NULL,1,142.0,143.0,145.0,'runner');
INSERT INTO "jobs" VALUES('7151072bb4b4417bba6ce2873882d890',2,'q','round','{"n":0}','done','{"picks":1.0}',NULL,1,142.0,143.0,145.0,'runner');
CREATE TABLE labels (
	project VARCHAR NOT NULL, 
	seq BIGINT NOT NULL, 
	item VARCHAR NOT NULL, 
	annotator VARCHAR NOT NULL, 
	value TEXT NOT NULL, 
	status VARCHAR NOT NULL, 
	slot BIGINT, 
	late BOOLEAN NOT NULL, 
	lease VARCHAR, 
	reason VARCHAR, 
	provenance TEXT NOT NULL, 
	resolution BIGINT, 
	superseded_by BIGINT, 
	time DOUBLE NOT NULL, 
	PRIMARY KEY (project, seq), 
	FOREIGN KEY(project, item) REFERENCES items (project, item)
);
INSERT INTO "labels" VALUES('p',1,'b','import','"early"','accepted',1,0,NULL,NULL,'{}',1,NULL,1.79599069705376434323e+09);
INSERT INTO "labels" VALUES('p',2,'a','bob','1.0','accepted',1,0,'3c30326092f644daa719329e91d8d8a4',NULL,'{}',2,3,131.0);
INSERT INTO "labels" VALUES('p',3,'a','bob','1','updated',1,0,'3c30326092f644daa719329e91d8d8a4',NULL,'{}',3,5,132.0);
INSERT INTO "labels" VALUES('p',4,'c','bob','null','skipped',NULL,0,NULL,NULL,'{}',NULL,NULL,140.0);
INSERT INTO "labels" VALUES('p',5,'a','bob','null','retracted',NULL,0,NULL,NULL,'{}',NULL,NULL,141.0);
INSERT INTO "labels" VALUES('q',1,'b','import','"early"','accepted',1,0,NULL,NULL,'{}',1,NULL,1795990697.20267);
INSERT INTO "labels" VALUES('q',2,'a','bob','1.0','accepted',1,0,'fa9a2b8559ee4c77a6ac1969aceb47a1',NULL,'{}',2,3,131.0);
INSERT INTO "labels" VALUES('q',3,'a','bob','1','updated',1,0,'fa9a2b8559ee4c77a6ac1969aceb47a1',NULL,'{}',3,5,132.0);
INSERT INTO "labels" VALUES('q',4,'c','bob','null','skipped',NULL,0,NULL,NULL,'{}',NULL,NULL,140.0);
INSERT INTO "labels" VALUES('q',5,'a','bob','null','retracted',NULL,0,NULL,NULL,'{}',NULL,NULL,141.0);
CREATE TABLE leases (
	lease VARCHAR NOT NULL, 
	project VARCHAR NOT NULL, 
	item VARCHAR NOT NULL, 
	annotator VARCHAR NOT NULL, 
	state VARCHAR NOT NULL, 
	granted DOUBLE NOT NULL, 
	expires DOUBLE NOT NULL, 
	PRIMARY KEY (lease), 
	FOREIGN KEY(project, item) REFERENCES items (project, item)
);
INSERT INTO "leases" VALUES('176af12e0c3342e8808a82ecf47030fd','p','a','ann','expired',100.0,110.0);
INSERT INTO "leases" VALUES('1de8f7d09fe249b0887d55fe20371c5e','p','b','ann','expired',100.0,110.0);
INSERT INTO "leases" VALUES('3c30326092f644daa719329e91d8d8a4','p','a','bob','labeled',105.0,135.0);
INSERT INTO "leases" VALUES('2e219e3366474581bc80f66b8fdbe0a1','p','a','cat','returned',1.79599069707590484621e+09,1.79599159707590484615e+09);
INSERT INTO "leases" VALUES('f405b22dc0944430b2fddfc35dd32575','q','a','ann','expired',100.0,110.0);
INSERT INTO "leases" VALUES('7d31e321621c417c903d294e8d70c2cd','q','b','ann','expired',100.0,110.0);
INSERT INTO "leases" VALUES('fa9a2b8559ee4c77a6ac1969aceb47a1','q','a','bob','labeled',105.0,135.0);
INSERT INTO "leases" VALUES('957748668385417486552e65e59842bb','q','a','cat','returned',1.79599069723147583012e+09,1.79599159723147583011e+09);
CREATE TABLE meta (
	name VARCHAR NOT NULL, 
	value VARCHAR NOT NULL, 
	PRIMARY KEY (name)
);
INSERT INTO "meta" VALUES('schema_version','1');
CREATE TABLE models (
	project VARCHAR NOT NULL, 
	version VARCHAR NOT NULL, 
	round BIGINT NOT NULL, 
	model VARCHAR NOT NULL, 
	info TEXT NOT NULL, 
	created DOUBLE NOT NULL, 
	active BOOLEAN NOT NULL, 
	PRIMARY KEY (project, version), 
	FOREIGN KEY(project) REFERENCES projects (project)
);
INSERT INTO "models" VALUES('p','r0000-abcd',0,'abcd','{"accuracy":0.5}',146.0,1);
INSERT INTO "models" VALUES('p','r0001-bcde',1,'bcde','{}',148.0,0);
INSERT INTO "models" VALUES('q','r0000-abcd',0,'abcd','{"accuracy":0.5}',146.0,1);
INSERT INTO "models" VALUES('q','r0001-bcde',1,'bcde','{}',148.0,0);
CREATE TABLE parts (
	pool VARCHAR NOT NULL, 
	part VARCHAR NOT NULL, 
	number BIGINT NOT NULL, 
	position BIGINT NOT NULL, 
	file VARCHAR NOT NULL, 
	role VARCHAR NOT NULL, 
	rows BIGINT NOT NULL, 
	key_sum BIGINT NOT NULL, 
	bytes BIGINT NOT NULL, 
	PRIMARY KEY (pool, part), 
	FOREIGN KEY(pool, number) REFERENCES snapshots (pool, number)
);
INSERT INTO "parts" VALUES('digits','part1',1,0,'pools/1','pool',3,-1,10);
INSERT INTO "parts" VALUES('digits','part2',2,1,'pools/2','pool',3,-2,10);
CREATE TABLE picks (
	project VARCHAR NOT NULL, 
	round BIGINT NOT NULL, 
	item VARCHAR NOT NULL, 
	"key" BIGINT NOT NULL, 
	rank BIGINT NOT NULL, 
	score DOUBLE, 
	probability DOUBLE, 
	picked BOOLEAN NOT NULL, 
	PRIMARY KEY (project, round, item), 
	FOREIGN KEY(project, round) REFERENCES selections (project, round)
);
INSERT INTO "picks" VALUES('p',0,'a',-9223372036854775808,0,3.33333333333333314829e-01,NULL,1);
INSERT INTO "picks" VALUES('p',0,'b',-9223372036854775807,1,0.25,NULL,1);
INSERT INTO "picks" VALUES('p',0,'c',-9223372036854775806,2,NULL,NULL,1);
INSERT INTO "picks" VALUES('p',0,'z',1,0,NULL,1.0e-300,0);
INSERT INTO "picks" VALUES('q',0,'a',-9223372036854775808,0,3.33333333333333314829e-01,NULL,1);
INSERT INTO "picks" VALUES('q',0,'b',-9223372036854775807,1,0.25,NULL,1);
INSERT INTO "picks" VALUES('q',0,'c',-9223372036854775806,2,NULL,NULL,1);
INSERT INTO "picks" VALUES('q',0,'z',1,0,NULL,1.0e-300,0);
CREATE TABLE projects (
	project VARCHAR NOT NULL, 
	pool VARCHAR NOT NULL, 
	settings TEXT NOT NULL, 
	created DOUBLE NOT NULL, 
	version BIGINT NOT NULL, 
	deleted DOUBLE, 
	PRIMARY KEY (project)
);
INSERT INTO "projects" VALUES('p','digits','{"labeling":{"labels_per_item":2,"max_skips":1}}',1.7959906970423755646e+09,2,NULL);
INSERT INTO "projects" VALUES('q','digits','{"labeling":{"labels_per_item":2,"max_skips":1}}',1.7959906971708421707e+09,2,162.0);
CREATE TABLE rounds (
	project VARCHAR NOT NULL, 
	round BIGINT NOT NULL, 
	snapshot BIGINT NOT NULL, 
	labels_seq BIGINT NOT NULL, 
	seeds TEXT NOT NULL, 
	begun DOUBLE NOT NULL, 
	PRIMARY KEY (project, round), 
	FOREIGN KEY(project) REFERENCES projects (project)
);
INSERT INTO "rounds" VALUES('p',0,2,0,'{"model":1}',1.79599069704376387594e+09);
INSERT INTO "rounds" VALUES('q',0,2,0,'{"model":1}',1.79599069717881464959e+09);
CREATE TABLE selections (
	project VARCHAR NOT NULL, 
	round BIGINT NOT NULL, 
	provenance TEXT NOT NULL, 
	committed DOUBLE NOT NULL, 
	PRIMARY KEY (project, round), 
	FOREIGN KEY(project) REFERENCES projects (project)
);
INSERT INTO "selections" VALUES('p',0,'{"seed":1180591620717411303424}',1.7959906970569779873e+09);
INSERT INTO "selections" VALUES('q',0,'{"seed":1180591620717411303424}',1.79599069720421028136e+09);
CREATE TABLE snapshots (
	pool VARCHAR NOT NULL, 
	number BIGINT NOT NULL, 
	info TEXT NOT NULL, 
	created DOUBLE NOT NULL, 
	PRIMARY KEY (pool, number)
);
INSERT INTO "snapshots" VALUES('digits',1,'{"classes":["\u00e4","b"],"ratio":1.0}',1.79599069703746724128e+09);
INSERT INTO "snapshots" VALUES('digits',2,'{"classes":["\u00e4","b"],"ratio":1.0}',1.79599069704088282585e+09);
CREATE TABLE stages (
	project VARCHAR NOT NULL, 
	round BIGINT NOT NULL, 
	stage VARCHAR NOT NULL, 
	output TEXT NOT NULL, 
	seconds DOUBLE NOT NULL, 
	finished DOUBLE NOT NULL, 
	PRIMARY KEY (project, round, stage), 
	FOREIGN KEY(project, round) REFERENCES rounds (project, round)
);
INSERT INTO "stages" VALUES('p',0,'train','{"loss":0.1}',3.33333333333333314829e-01,1.79599069705221891408e+09);
INSERT INTO "stages" VALUES('p',0,'select','{}',2.0,1.7959906970569779873e+09);
INSERT INTO "stages" VALUES('q',0,'train','{"loss":0.1}',3.33333333333333314829e-01,1.79599069719886898994e+09);
INSERT INTO "stages" VALUES('q',0,'select','{}',2.0,1.79599069720421028136e+09);
CREATE TABLE suggestions (
	project VARCHAR NOT NULL, 
	version VARCHAR NOT NULL, 
	item VARCHAR NOT NULL, 
	label TEXT NOT NULL, 
	probs TEXT NOT NULL, 
	PRIMARY KEY (project, version, item), 
	FOREIGN KEY(project, version) REFERENCES models (project, version)
);
INSERT INTO "suggestions" VALUES('p','r0000-abcd','a','"x"','[0.5,0.5]');
INSERT INTO "suggestions" VALUES('q','r0000-abcd','a','"x"','[0.5,0.5]');
CREATE TABLE tokens (
	token_id VARCHAR NOT NULL, 
	name VARCHAR NOT NULL, 
	scopes TEXT NOT NULL, 
	hash VARCHAR NOT NULL, 
	created DOUBLE NOT NULL, 
	expires DOUBLE, 
	revoked DOUBLE, 
	PRIMARY KEY (token_id), 
	UNIQUE (hash)
);
INSERT INTO "tokens" VALUES('06636cea6d1c','ann''s','["project:p:label"]','0000000000000000000000000000000000000000000000000000000000000000',160.0,1000000000.0,161.0);
CREATE INDEX events_project ON events (project, seq);
CREATE INDEX idempotency_created ON idempotency (created);
CREATE UNIQUE INDEX parts_position ON parts (pool, position);
CREATE INDEX items_open ON items (project, round, rank) WHERE open IS 1;
CREATE UNIQUE INDEX jobs_running ON jobs (project) WHERE state = 'running';
CREATE INDEX jobs_state ON jobs (state, number);
CREATE INDEX checkpoints_file ON checkpoints (file);
CREATE INDEX column_parts_file ON column_parts (file);
CREATE INDEX picks_item ON picks (project, item);
CREATE INDEX leases_item ON leases (project, item);
CREATE INDEX leases_state ON leases (project, state, expires);
CREATE INDEX labels_item ON labels (project, item, annotator);
CREATE INDEX suggestions_item ON suggestions (project, item);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('events',59);
COMMIT;
