import json, httpx2 as httpx
from server.fakes import Script
D='<｜DSML｜tool_calls>\n<｜DSML｜invoke name="f">\n<｜DSML｜parameter name="p" string="true">ab</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>'
def test_all(start):
    r=start(Script("hm</think>hello"), Script("hm</think>x\n\n"+D))
    M=[{"role":"user","content":"hi"}]
    fn=[{"type":"function","function":{"name":"f","parameters":{"type":"object","properties":{"p":{"type":"string"}}}}}]
    for path,b in [("/v1/chat/completions",dict(messages=M)),("/chat/completions",dict(messages=M,tools=fn)),("/v1/chat/completions",dict(messages=M,stream=True,stream_options={"include_usage":True})),("/v1/chat/completions",dict(messages=M,stream=True,tools=fn)),
       ("/v1/messages",dict(messages=M,max_tokens=99)),("/v1/messages",dict(messages=M,max_tokens=99,tools=[{"name":"f","input_schema":{"type":"object"}}])),("/v1/messages",dict(messages=M,max_tokens=99,stream=True)),("/v1/messages?beta=true",dict(messages=M,max_tokens=99,stream=True,tools=[{"name":"f","input_schema":{"type":"object"}}])),
       ("/v1/responses",dict(input="hi")),("/v1/responses",dict(input="hi",tools=[{"type":"function","name":"f"}])),("/v1/responses",dict(input="hi",stream=True)),("/v1/responses",dict(input="hi",stream=True,tools=[{"type":"function","name":"f"}])),
       ("/v1/completions",dict(prompt="hi")),("/v1/completions",dict(prompt="hi",stream=True,echo=True,logprobs=2)),("/v1/messages/count_tokens",dict(messages=M)),("/tokenize",dict(content="hi")),("/detokenize",dict(tokens=[0,90,1])),("/v1/nothing",{}),("/v1/chat/completions",{})]:
        x=httpx.post(r.url+path,json=b); print(path,x.status_code,dict(x.headers).get("x-dsv4-cache")); print("   ",x.text[:2500])
    for path in ["/","/health","/metrics","/v1/models","/v1/models/x","/openapi.json"]:
        x=httpx.get(r.url+path); print(path,x.status_code,x.text[:200])
    print(r.crashes); print(r.turns.remembered[:3])
    assert 0
